// The page: one card a camera, fed by one WebSocket.
//
//   hello   {"type": "hello", skeletons, colors, ...}          what is needed to draw
//   status  {"type": "status", streams: [{name, state, ...}]}  once a second
//   binary  length (uint32, big-endian), pose/1 as JSON, JPEG (or none)
//
// It says what it wants ({"watch": {name: canvas width}}: only what can be seen, 0 without picture)
// and what it has drawn ({"seen": name}); the server keeps nothing for it but the newest.
import { drawPeople } from "./draw.js";

const RETRY_MS = [500, 1000, 2000, 4000];
const SILENCE_MS = 5000; // the server says something every second
const SETTINGS = "posestream.switches";

const cameras = new Map(); // by name
const summary = document.getElementById("summary");
const load = document.getElementById("load");
const main = document.getElementById("cameras");
const switches = [...document.querySelectorAll("#switches input")];
const decoder = new TextDecoder();
let hello = null;
let socket = null;
let attempts = 0;
let heardAt = performance.now();

// --- the connection ------------------------------------------------------------------------------

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live`);
  const mine = socket;
  mine.binaryType = "arraybuffer";
  heardAt = performance.now();
  mine.onmessage = ({ data }) => {
    heardAt = performance.now();
    if (typeof data === "string") hear(JSON.parse(data));
    else receive(mine, data);
  };
  mine.onclose = () => {
    if (mine !== socket) return;
    document.body.classList.add("offline");
    summary.textContent = "The server does not answer; trying again…";
    const wait = RETRY_MS[Math.min(attempts++, RETRY_MS.length - 1)];
    setTimeout(reconnect, wait * (0.75 + 0.5 * Math.random()));
  };
}

async function reconnect() {
  try { // a new token means signing in again, and a WebSocket cannot say so
    if ((await fetch("/api/streams")).status === 401) return location.reload();
  } catch { /* still away */ }
  connect();
}

function hear(message) {
  if (message.type === "hello") {
    hello = message;
    attempts = 0;
    document.body.classList.remove("offline");
    document.body.classList.toggle("privacy", hello.privacy);
    watch();
  } else if (message.type === "status") {
    showStatus(message.streams);
    showLoad(message.load);
  }
}

setInterval(() => {
  if (!document.hidden && performance.now() - heardAt > SILENCE_MS) {
    socket.close(); // a line that was cut says nothing by itself
    heardAt = performance.now();
  }
}, 1000);

// --- what is wanted: nothing that cannot be seen ----------------------------------------------------

let watched = "";

function watch() {
  const wants = {};
  for (const [name, camera] of cameras) {
    if (document.hidden || !camera.visible) continue;
    const pixels = Math.ceil(camera.view.clientWidth * (window.devicePixelRatio || 1));
    wants[name] = isOn("black") || hello?.privacy ? 0 : Math.max(1, pixels);
  }
  const text = JSON.stringify({ watch: wants });
  if (socket?.readyState !== WebSocket.OPEN || (text === watched && socket === watch.socket)) return;
  watched = text;
  watch.socket = socket;
  socket.send(text);
}

const onScreen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const camera = cameras.get(target.dataset.name);
    if (camera) camera.visible = isIntersecting;
  }
  watch();
}, { rootMargin: "100px" });
const resized = new ResizeObserver(watch);
document.addEventListener("visibilitychange", watch);

// --- frames ----------------------------------------------------------------------------------------

async function receive(from, data) {
  const length = new DataView(data).getUint32(0);
  const message = JSON.parse(decoder.decode(new Uint8Array(data, 4, length)));
  const camera = cameras.get(message.stream);
  const jpeg = new Uint8Array(data, 4 + length);
  try {
    const picture = jpeg.length ? await createImageBitmap(new Blob([jpeg])) : null;
    if (camera && isNewer(message, camera.message)) {
      camera.picture?.close();
      Object.assign(camera, { message, picture });
      draw(camera);
    } else {
      picture?.close();
    }
  } finally {
    if (from.readyState === WebSocket.OPEN) from.send(JSON.stringify({ seen: message.stream }));
  }
}

function isNewer(message, shown) {
  return !shown || message.session !== shown.session || message.seq > shown.seq;
}

// With square pixels: what is stored is stretched, never shrunk.
function shownSize(message) {
  const [height, width] = message.size;
  const aspect = message.pixel_aspect ?? 1;
  return aspect >= 1 ? [height, width * aspect] : [height / aspect, width];
}

function draw(camera) {
  const { canvas, context, message, picture } = camera;
  const [height, width] = shownSize(message);
  const most = Math.ceil(camera.view.clientWidth * (window.devicePixelRatio || 1));
  const scale = picture ? picture.width / width : Math.min(1, Math.max(320, most) / width);
  const size = picture ? [picture.width, picture.height] :
    [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  if (picture && !isOn("black")) {
    context.drawImage(picture, 0, 0, ...size);
  } else {
    context.fillStyle = "black";
    context.fillRect(0, 0, ...size);
  }
  drawPeople(context, message, hello.skeletons[message.skeleton], {
    skeleton: isOn("skeleton"),
    boxes: isOn("boxes"),
    ids: isOn("ids"),
    smoothed: isOn("smoothed"),
    minScore: hello.min_keypoint_score,
    colors: hello.colors,
    textHeight: 12 * (size[0] / Math.max(1, camera.view.clientWidth)), // 12 px on the screen
  });
  setText(camera.people, String(message.people.length));
  camera.drawn = { frame: message.frame, captured_unix_s: message.captured_unix_s };
  canvas.dispatchEvent(new CustomEvent("drawn", { detail: camera.drawn }));
}

// --- states ----------------------------------------------------------------------------------------

function showStatus(streams) {
  for (const [name, camera] of cameras) {
    if (streams.some((stream) => stream.name === name)) continue;
    onScreen.unobserve(camera.card);
    resized.unobserve(camera.view);
    camera.picture?.close();
    camera.card.remove();
    cameras.delete(name);
  }
  for (const stream of streams) {
    const camera = cameras.get(stream.name) ?? addCamera(stream.name);
    showState(camera, stream);
  }
  const live = streams.filter((stream) => stream.state === "live").length;
  const many = `${streams.length} camera${streams.length === 1 ? "" : "s"}`;
  setText(summary, live === streams.length ? `${many}, live` : `${many}, ${live} live`);
  watch();
}

// What the stream gives up because there is too much to do; nothing while all is as asked for.
function showLoad(told) {
  load.hidden = !told || told.step === 0;
  if (load.hidden) return;
  setText(load, `reduced: ${told.text}`);
  load.title = told.reason;
}

function addCamera(name) {
  const card = document.getElementById("camera").content.firstElementChild.cloneNode(true);
  const find = (selector) => card.querySelector(selector);
  const camera = {
    card, visible: false, message: null, picture: null, view: find(".view"),
    canvas: find("canvas"), context: find("canvas").getContext("2d", { alpha: false }),
    state: find(".state"), veil: find(".veil"), veilState: find(".veil-state"),
    veilReason: find(".veil-reason"), fps: find(".fps"), latency: find(".latency"),
    people: find(".people"), dropped: find(".dropped"),
  };
  card.dataset.name = name;
  find("h2").textContent = name;
  camera.canvas.setAttribute("aria-label", `Live picture of ${name}`);
  const button = find(".enlarge");
  button.setAttribute("aria-label", `Enlarge ${name}`);
  button.addEventListener("click", () => {
    const enlarged = card.classList.toggle("enlarged");
    button.textContent = enlarged ? "Smaller" : "Enlarge";
    button.setAttribute("aria-pressed", String(enlarged));
    card.scrollIntoView({ block: "nearest" });
  });
  cameras.set(name, camera);
  main.append(card);
  onScreen.observe(card);
  resized.observe(camera.view);
  return camera;
}

function since(state, seconds) {
  if (seconds === null) return "";
  return state === "ended" ? ` ${duration(seconds)} ago` : ` for ${duration(seconds)}`;
}

function showState(camera, stream) {
  camera.card.dataset.state = stream.state;
  setText(camera.state, stream.state);
  const seconds = stream.for_seconds;
  setText(camera.veilState, `${stream.state}${since(stream.state, seconds)}`);
  setText(camera.veilReason, stream.reason);
  setText(camera.fps, stream.fps.toFixed(1));
  const { p50, p95, p99 } = stream.latency_ms;
  const latency = p50 === undefined ? ["–"] : [p50, p95, p99].map((ms) => ms.toFixed(0));
  setText(camera.latency, latency.join(" / "));
  if (stream.state !== "live") setText(camera.people, "–");
  const reasons = Object.entries(stream.dropped);
  setText(camera.dropped, String(reasons.reduce((sum, [, count]) => sum + count, 0)));
  camera.dropped.title = reasons.map(([reason, count]) => `${reason}: ${count}`).join("\n");
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// --- switches --------------------------------------------------------------------------------------

function isOn(name) {
  return switches.find((input) => input.name === name).checked;
}

function remembered() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    return {};
  }
}

for (const input of switches) {
  const before = remembered()[input.name];
  if (typeof before === "boolean") input.checked = before;
  input.addEventListener("change", () => {
    const all = Object.fromEntries(switches.map((other) => [other.name, other.checked]));
    try {
      localStorage.setItem(SETTINGS, JSON.stringify(all));
    } catch { /* not remembered, then */ }
    for (const camera of cameras.values()) if (camera.message) draw(camera);
    watch();
  });
}

if (location.hash) history.replaceState(null, "", "/"); // signed in already: forget the token
connect();
