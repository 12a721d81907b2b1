//! The real binary, real sockets, real Redis servers, and clients that share no code with us.
//!
//! Each file tells the stories of one part. Nothing here waits by sleeping: a story polls for the
//! state it needs, and fails when that does not come. What a story starts ends with it.

#[path = "../common/balancer.rs"]
mod balancer;
#[path = "../common/client.rs"]
mod client;
#[path = "../common/cluster.rs"]
mod cluster;
#[path = "../common/documents.rs"]
mod documents;
#[path = "../common/guarded.rs"]
mod guarded;
#[path = "../common/http.rs"]
mod http;
#[path = "../common/node.rs"]
mod node;
#[path = "../common/redis.rs"]
mod redis;
#[path = "../common/sentinel.rs"]
mod sentinel;

mod acks;
mod admin;
mod asking;
mod auth;
mod bad_frames;
mod bad_heads;
mod bad_json;
mod churn;
mod closing_handshake;
mod document_blocks;
mod doors;
mod echo;
mod ending;
mod failover;
mod first_screen;
mod flat;
mod flood;
mod foreign;
mod histograms;
mod history;
mod hooks;
mod hooks_tls;
mod http_calls;
mod instances;
mod jwks;
mod log;
mod memory;
mod monitor;
mod no_files;
mod one_instance;
mod ops_port;
mod other_clients;
mod outage;
mod page;
mod presence;
mod proxy_protocol;
mod refused;
mod reload;
mod revocations;
mod rules;
mod scheduling;
mod shares;
mod slow;
mod tls;
mod token_snippets;
mod tokens;
