// A chat server as it is usually written in Go: gorilla/websocket, one hub goroutine that owns the
// rooms, two goroutines and a channel for each client, one Redis channel for all instances.
//
//	gorilla ADDRESS REDIS_ADDRESS
package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gorilla/websocket"
	"github.com/redis/go-redis/v9"
)

const (
	channelName  = "messages"
	pingInterval = 25 * time.Second
	pongWait     = 60 * time.Second
	writeWait    = 10 * time.Second
	queueLength  = 256
)

type inbound struct {
	Payload json.RawMessage `json:"payload"`
}

type message struct {
	Type    string          `json:"type"`
	RoomID  string          `json:"room_id"`
	Payload json.RawMessage `json:"payload"`
}

type client struct {
	room string
	conn *websocket.Conn
	send chan []byte
}

type hub struct {
	rooms   map[string]map[*client]struct{}
	joining chan *client
	leaving chan *client
	arrived <-chan *redis.Message
}

func (h *hub) run() {
	for {
		select {
		case c := <-h.joining:
			if h.rooms[c.room] == nil {
				h.rooms[c.room] = make(map[*client]struct{})
			}
			h.rooms[c.room][c] = struct{}{}
			c.send <- []byte(`{"type":"ok","room_id":"` + c.room + `"}`)
		case c := <-h.leaving:
			h.drop(c)
		case m := <-h.arrived:
			h.deliver([]byte(m.Payload))
		}
	}
}

func (h *hub) drop(c *client) {
	members := h.rooms[c.room]
	if _, there := members[c]; !there {
		return
	}
	delete(members, c)
	close(c.send)
	if len(members) == 0 {
		delete(h.rooms, c.room)
	}
}

func (h *hub) deliver(text []byte) {
	var m message
	if json.Unmarshal(text, &m) != nil {
		return
	}
	for c := range h.rooms[m.RoomID] {
		select {
		case c.send <- text:
		default:
			h.drop(c) // too slow to keep
		}
	}
}

func (c *client) read(h *hub, db *redis.Client) {
	defer func() {
		h.leaving <- c
		c.conn.Close()
	}()
	c.conn.SetReadLimit(65536)
	c.conn.SetReadDeadline(time.Now().Add(pongWait))
	c.conn.SetPongHandler(func(string) error {
		return c.conn.SetReadDeadline(time.Now().Add(pongWait))
	})
	for {
		var in inbound
		if c.conn.ReadJSON(&in) != nil {
			return
		}
		text, err := json.Marshal(message{"message", c.room, in.Payload})
		if err != nil {
			return
		}
		if err := db.Publish(context.Background(), channelName, text).Err(); err != nil {
			log.Print(err)
		}
	}
}

func (c *client) write() {
	ticker := time.NewTicker(pingInterval)
	defer func() {
		ticker.Stop()
		c.conn.Close()
	}()
	for {
		select {
		case text, open := <-c.send:
			c.conn.SetWriteDeadline(time.Now().Add(writeWait))
			if !open {
				c.conn.WriteMessage(websocket.CloseMessage, nil)
				return
			}
			if c.conn.WriteMessage(websocket.TextMessage, text) != nil {
				return
			}
		case <-ticker.C:
			c.conn.SetWriteDeadline(time.Now().Add(writeWait))
			if c.conn.WriteMessage(websocket.PingMessage, nil) != nil {
				return
			}
		}
	}
}

func main() {
	db := redis.NewClient(&redis.Options{Addr: os.Args[2]})
	subscription := db.Subscribe(context.Background(), channelName)
	if _, err := subscription.Receive(context.Background()); err != nil {
		log.Fatal(err)
	}
	h := &hub{
		rooms:   make(map[string]map[*client]struct{}),
		joining: make(chan *client),
		leaving: make(chan *client),
		arrived: subscription.Channel(redis.WithChannelSize(1000)),
	}
	go h.run()
	upgrader := websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}
	http.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		c := &client{r.URL.Query().Get("room_id"), conn, make(chan []byte, queueLength)}
		h.joining <- c
		go c.write()
		go c.read(h, db)
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
