// The chat page: streams answers, marks what was drafted, and shows what the engine does meanwhile.
"use strict";

const $ = (id) => document.getElementById(id);
const LIVE_MS = 500;
const NOTHING = "–";

let messages = [];
let running = null; // AbortController of the answer being written

function headers() {
  const made = { "content-type": "application/json" };
  const key = $("key").value.trim();
  if (key) made.authorization = `Bearer ${key}`;
  return made;
}

function addMessage(role, text) {
  const box = document.createElement("article");
  box.className = `message ${role}`;
  const who = document.createElement("span");
  who.className = "who";
  who.textContent = role;
  const body = document.createElement("span");
  body.className = "body";
  body.textContent = text;
  box.append(who, body);
  $("log").append(box);
  scrollDown();
  return box;
}

function scrollDown() {
  const log = $("log");
  log.scrollTop = log.scrollHeight;
}

function appendPiece(body, text, drafted) {
  const piece = document.createElement("span");
  piece.className = drafted ? "piece drafted" : "piece";
  piece.title = drafted ? "proposed by the draft, accepted by the target" : "written by the target";
  piece.textContent = text;
  body.append(piece);
}

function numberOf(id) {
  const value = $(id).value;
  return value === "" ? undefined : Number(value);
}

function request() {
  const system = $("system").value.trim();
  return {
    messages: system ? [{ role: "system", content: system }, ...messages] : messages,
    stream: true,
    stream_options: { include_usage: true, include_drafted: true },
    temperature: numberOf("temperature"),
    top_p: numberOf("top_p"),
    seed: numberOf("seed"),
    max_tokens: numberOf("max_tokens"),
    speculation: { mode: $("mode").value, width: numberOf("width"), depth: numberOf("depth") },
  };
}

// Events of a stream, one JSON document each.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function answer() {
  const box = addMessage("assistant", "");
  const body = box.querySelector(".body");
  let text = "";
  running = new AbortController();
  busy(true);
  try {
    const response = await fetch("v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of eventsOf(response)) {
      if (event.error) throw new Error(event.error.message);
      const delta = event.choices[0]?.delta;
      if (delta?.reasoning_content) thoughtsOf(box).textContent += delta.reasoning_content;
      for (const [piece, drafted] of event.elmoe?.pieces ?? []) appendPiece(body, piece, drafted);
      text += delta?.content ?? "";
      if (event.usage) showUsage(box, event.usage);
      scrollDown();
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      box.classList.add("error");
      body.append(`${text ? "\n" : ""}${error.message}`);
    }
  } finally {
    messages.push({ role: "assistant", content: text });
    running = null;
    busy(false);
    $("prompt").focus();
  }
}

function thoughtsOf(box) {
  let thoughts = box.querySelector(".thoughts");
  if (!thoughts) {
    thoughts = document.createElement("span");
    thoughts.className = "thoughts";
    box.querySelector(".who").after(thoughts);
  }
  return thoughts;
}

function showUsage(box, usage) {
  const made = usage.elmoe;
  const rate = made.tpot_seconds ? 1 / made.tpot_seconds : null;
  const facts = document.createElement("span");
  facts.className = "facts";
  facts.textContent =
    `${usage.completion_tokens} tokens: ${made.tokens_by_draft} drafted, ${made.tokens_by_target} by the target` +
    (rate ? `; ${rate.toFixed(0)} tokens/s` : "") +
    (usage.prompt_tokens_details.cached_tokens ? `; ${usage.prompt_tokens_details.cached_tokens} prompt tokens reused` : "");
  box.append(facts);
  $("accepted").textContent = made.verify_steps ? `${(100 * made.acceptance_rate).toFixed(0)} %` : "off";
  $("length").textContent = made.verify_steps ? (1 + made.mean_accepted_length).toFixed(2) : NOTHING;
  $("ttft").textContent = `${(1000 * made.ttft_seconds).toFixed(0)} ms`;
}

function busy(is) {
  $("send").disabled = is;
  $("stop").disabled = !is;
  $("log").setAttribute("aria-busy", String(is));
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  messages.push({ role: "user", content: text });
  addMessage("user", text);
  answer();
}

// --- the live view ---

function drawLine(svg, values, most) {
  const width = 300, height = 80, step = width / Math.max(values.length - 1, 1);
  let path = "", pen = "M";
  values.forEach((value, index) => {
    if (value === null) { pen = "M"; return; }
    path += `${pen}${(index * step).toFixed(1)},${(height - 4 - (height - 8) * Math.min(value / most, 1)).toFixed(1)}`;
    pen = "L";
  });
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.replaceChildren(line);
}

function drawPool(pool) {
  const layers = pool.heat.length, experts = layers ? pool.heat[0].length : 0;
  if (!experts) return;
  const canvas = $("pool"), cell = Math.max(2, Math.floor(576 / experts));
  canvas.width = experts * cell;
  canvas.height = layers * cell;
  const context = canvas.getContext("2d");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  pool.heat.forEach((row, layer) => row.forEach((heat, expert) => {
    const light = dark ? 12 + 58 * heat : 97 - 52 * heat;
    context.fillStyle = `hsl(${210 - 190 * heat} 75% ${light}%)`;
    context.fillRect(expert * cell, layer * cell, cell, cell);
    if (pool.resident[layer][expert] && cell > 3) {
      context.strokeStyle = dark ? "#7ddc8b" : "#2a7d35";
      context.strokeRect(expert * cell + 0.5, layer * cell + 0.5, cell - 1, cell - 1);
    }
  }));
  const held = pool.resident.map((row) => row.reduce((sum, one) => sum + one, 0));
  canvas.setAttribute("aria-label", `Expert pool: ${layers} layers, ${held[0]} of ${experts} experts each`);
}

async function look() {
  try {
    const response = await fetch("elmoe/live", { headers: headers() });
    if (response.status === 401) { $("state").textContent = "needs an API key: see Settings"; return; }
    const live = await response.json();
    $("state").textContent = "connected";
    $("model").textContent = live.model;
    $("running").textContent = `${live.running} / ${live.max_batch}`;
    $("waiting").textContent = live.waiting;
    const last = live.history.at(-1);
    $("rate").textContent = live.running && last ? last.tok_s.toFixed(0) : NOTHING;
    drawLine($("acceptance"), live.history.map((point) => point.acceptance_rate), 1);
    const rates = live.history.map((point) => point.tok_s), most = Math.max(1, ...rates);
    drawLine($("speed"), rates, most);
    $("most").textContent = `; at most ${most.toFixed(0)}`;
    drawPool(live.pool);
  } catch {
    $("state").textContent = "not connected";
  }
}

async function keepLooking() {
  if (!document.hidden) await look();
  setTimeout(keepLooking, LIVE_MS);
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("stop").addEventListener("click", () => running?.abort());
$("fresh").addEventListener("click", () => { running?.abort(); messages = []; $("log").replaceChildren(); $("prompt").focus(); });
$("colours").addEventListener("change", () => document.body.classList.toggle("marked", $("colours").checked));
document.body.classList.add("marked");
keepLooking();
