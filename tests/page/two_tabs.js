// Opens the page in two tabs of a headless Chromium, one on each instance, and lets them talk.
//
//   node two_tabs.js URL_A URL_B PICTURE.png
//
// Speaks the Chrome DevTools Protocol over `ws`; there is no other driver. Ends the browser and
// removes its profile, whatever happens.
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");
const { WebSocket } = require("ws");

const PATIENCE_MS = 60_000;
const [urlA, urlB, picture] = process.argv.slice(2);
const profile = fs.mkdtempSync(path.join(os.tmpdir(), "campanile-page-"));

function startBrowser() {
  const flags = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--disable-extensions",
    "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank",
  ];
  const browser = spawn(process.env.CHROMIUM ?? "chromium", flags, {
    stdio: ["ignore", "ignore", "pipe"],
    detached: true, // A process group of its own, so that all of it can be ended.
  });
  return new Promise((resolve, reject) => {
    let said = "";
    browser.on("error", reject);
    browser.on("exit", (code) => reject(new Error(`chromium ended (${code}): ${said}`)));
    browser.stderr.on("data", (data) => {
      said += data;
      const found = said.match(/DevTools listening on (ws:\S+)/);
      if (found) resolve({ browser, url: found[1] });
    });
  });
}

class Devtools {
  static async connect(url) {
    const socket = new WebSocket(url, { perMessageDeflate: false });
    await new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject));
    return new Devtools(socket);
  }

  constructor(socket) {
    this.socket = socket;
    this.last = 0;
    this.waiting = new Map();
    this.complaints = [];
    socket.on("message", (data) => this.heard(JSON.parse(data)));
  }

  heard({ id, method, params, result, error }) {
    if (method === "Runtime.exceptionThrown") this.complaints.push(params.exceptionDetails);
    if (method === "Log.entryAdded" && params.entry.level === "error") {
      this.complaints.push(params.entry);
    }
    const waiting = this.waiting.get(id);
    this.waiting.delete(id);
    if (error) waiting?.reject(new Error(JSON.stringify(error)));
    else waiting?.resolve(result);
  }

  call(method, params = {}, sessionId = undefined) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.socket.send(JSON.stringify({ id, method, params, sessionId }));
    });
  }
}

class Tab {
  static async open(devtools, url) {
    const { targetId } = await devtools.call("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await devtools.call("Target.attachToTarget", { targetId, flatten: true });
    const tab = new Tab(devtools, sessionId);
    await tab.call("Runtime.enable");
    await tab.call("Log.enable");
    await tab.call("Page.navigate", { url });
    return tab;
  }

  constructor(devtools, sessionId) {
    this.devtools = devtools;
    this.sessionId = sessionId;
  }

  call(method, params) {
    return this.devtools.call(method, params, this.sessionId);
  }

  async eval(expression) {
    const answer = await this.call("Runtime.evaluate", { expression, returnByValue: true });
    if (answer.exceptionDetails) throw new Error(`${expression}: ${answer.result.description}`);
    return answer.result.value;
  }

  async until(what, expression) {
    const deadline = Date.now() + PATIENCE_MS;
    while (!(await this.eval(`document.readyState === "complete" && !!(${expression})`))) {
      if (Date.now() > deadline) {
        throw new Error(`waited in vain until ${what}; the page says:\n` +
          (await this.eval("document.body.innerText")));
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  /// What a person does: puts text into a field, presses a button.
  fill(id, text) {
    return this.eval(`document.getElementById(${JSON.stringify(id)}).value = ${JSON.stringify(text)}`);
  }

  press(id) {
    return this.eval(`document.getElementById(${JSON.stringify(id)}).click()`);
  }

  sees(text) {
    const shown = `document.getElementById("log").innerText.includes(${JSON.stringify(text)})`;
    return this.until(`it shows ${JSON.stringify(text)}`, shown);
  }

  text(id) {
    return this.eval(`document.getElementById(${JSON.stringify(id)}).textContent`);
  }
}

async function talk(devtools) {
  const tabs = [await Tab.open(devtools, urlA), await Tab.open(devtools, urlB)];
  const [ann, bob] = tabs;
  for (const tab of tabs) {
    await tab.until("it is connected", `document.getElementById("status")?.textContent === "connected"`);
    await tab.fill("room", "tower");
    await tab.press("join");
    await tab.sees("joined tower");
  }
  if ((await ann.text("node")) === (await bob.text("node"))) throw new Error("one node, not two");

  const markup = "hello <b>Bob</b> & é😀";
  await ann.fill("text", markup);
  await ann.press("say");
  for (const tab of tabs) await tab.sees(`[tower] ${await ann.text("user")}: ${markup}`);
  await bob.fill("text", "hello Ann");
  await bob.press("say");
  for (const tab of tabs) await tab.sees(`[tower] ${await bob.text("user")}: hello Ann`);

  await ann.fill("target", await bob.text("user"));
  await ann.fill("text", "only for you");
  await ann.press("send");
  await bob.sees(`[to you] ${await ann.text("user")}: only for you`);
  await bob.fill("text", "for everyone");
  await bob.press("broadcast");
  for (const tab of tabs) await tab.sees(`[everyone] ${await bob.text("user")}: for everyone`);
  const log = await ann.eval(`document.getElementById("log").innerText`);
  if (log.includes("only for you")) throw new Error("the sender heard what was for another");

  const { data } = await bob.call("Page.captureScreenshot", { format: "png" });
  fs.writeFileSync(picture, Buffer.from(data, "base64"));
  if (devtools.complaints.length > 0) throw new Error(JSON.stringify(devtools.complaints));
}

async function main() {
  const { browser, url } = await startBrowser();
  const ended = new Promise((resolve) => browser.removeAllListeners("exit").on("exit", resolve));
  try {
    const devtools = await Devtools.connect(url);
    await talk(devtools);
    console.log(`two tabs have talked; see ${picture}`);
    await devtools.call("Browser.close").catch(() => {});
  } finally {
    const late = setTimeout(() => process.kill(-browser.pid, "SIGKILL"), 5_000);
    if (process.exitCode) process.kill(-browser.pid, "SIGKILL");
    await ended;
    clearTimeout(late);
  }
}

main()
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(() => fs.rmSync(profile, { recursive: true, force: true, maxRetries: 10 }));
