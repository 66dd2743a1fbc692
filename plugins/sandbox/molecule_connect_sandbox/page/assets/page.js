// The chat page of the sandbox. All requests go to /_sandbox/ on the same address. Texts of agents are inserted with
// textContent; the only HTML is what the server rendered from Markdown and sanitized.

const API = "/_sandbox";
const PAGE_SIZE = 50;
// The server sends something every 10 s; a stream that is silent for longer is dead.
const SILENCE = 25_000;
const NEAR = 80;
const FOLD = 460;
const WAIT = 40_000;

const $ = (id) => document.getElementById(id);
const policy = window.trustedTypes?.createPolicy("sandbox", { createHTML: (html) => html });

const page = {
  state: null, // the newest state of the server
  workspace: null, // the id of the open workspace
  voice: "person",
  voices: [],
  messages: new Map(), // the open conversation by row number
  loading: 0, // counts conversations, so that late responses for an earlier one are dropped
  files: new Map(), // the files to send, by draft
  heard: loadHeard(),
  sending: false,
  refreshing: false,
  stale: false,
  rows: new Map(),
  kinds: [],
};

// Small helpers

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}

const FILE_ICON = "M6 2.5h6l3.5 3.5v11.5H6zM12 2.5V6h3.5";
const CLOSE_ICON = "M5 5l10 10M15 5L5 15";

function size(bytes) {
  if (bytes < 1024) return `${bytes} bytes`;
  return bytes < 1024 * 1024 ? `${(bytes / 1024).toFixed(1)} KB` : `${(bytes / 1024 / 1024).toFixed(1)} MB`;
}

function clock(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  const hours = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  return today ? hours : `${date.toLocaleDateString([], { month: "short", day: "numeric" })}, ${hours}`;
}

function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - time) / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.round(seconds / 3600)} h ago` : clock(time);
}

class Problem extends Error {}

async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(API + path, { ...options, headers: { "X-Sandbox-Page": "1", ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The sandbox does not answer. Start it again: molecule sandbox --serve");
  }
  if (response.ok) return response;
  let said = {};
  try {
    said = await response.json();
  } catch {
    // The status has to do.
  }
  const text = said.error ? said.error + (said.hint ? ` (${said.hint})` : "") : `the sandbox answered ${response.status}`;
  throw new Problem(text[0].toUpperCase() + text.slice(1));
}

const getJson = async (path) => (await request(path)).json();
const workspaceOf = (id) => page.state?.workspaces.find((one) => one.id === id);
const onPath = (suffix) => `/workspaces/${encodeURIComponent(page.workspace)}/${suffix}`;

function stored(key, value) {
  // Storage can be switched off; then drafts last as long as the page.
  try {
    if (value === undefined) return localStorage.getItem(key);
    if (value === "") localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    return null;
  }
  return null;
}

function loadHeard() {
  try {
    return JSON.parse(stored("heard")) ?? {};
  } catch {
    return {};
  }
}

// The state of a workspace in words

function condition(one) {
  if (one.status === "degraded" && one.wedged) {
    return one.error === "stopped"
      ? ["idle", "Connector stopped"]
      : ["bad", `Stuck${one.error ? `: ${one.error}` : ""}`];
  }
  const working = one.tasks > 0 ? `Working on ${one.tasks === 1 ? "a message" : `${one.tasks} messages`}` : "";
  switch (one.status) {
    case "online": return ["good", working || "Online"];
    case "degraded": return ["warn", `Degraded: ${Math.round(one.error_rate * 100)}% of messages fail`];
    case "awaiting_agent": return ["idle", one.beat ? "Offline: no connector" : "Waiting for a connector"];
    case "paused": return ["warn", "Paused"];
    case "provisioning": return ["warn", "Resuming"];
    case "offline": return ["idle", "Offline"];
    case "failed": return ["bad", "Failed"];
    default: return ["idle", one.status];
  }
}

const isServed = (one) => one.status === "online" || (one.status === "degraded" && one.error !== "stopped");

// The event stream

async function follow() {
  for (let failures = 0; ; failures += 1) {
    const control = new AbortController();
    let watchdog = setTimeout(() => control.abort(), SILENCE);
    try {
      const response = await request("/events", { signal: control.signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        clearTimeout(watchdog);
        if (done) break;
        watchdog = setTimeout(() => control.abort(), SILENCE);
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          if (!data) continue;
          failures = 0;
          live("open", "Live");
          apply(JSON.parse(data.slice(6)));
        }
      }
    } catch {
      // Whatever ended the stream, it is opened again.
    }
    clearTimeout(watchdog);
    live("lost", "Reconnecting…");
    if (failures > 1) banner("The sandbox does not answer. Trying again… Your text is kept.", "bad");
    await pause(Math.min(300 * 2 ** failures, 4000));
  }
}

let wake = () => {};

function pause(milliseconds) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    wake = () => {
      clearTimeout(timer);
      resolve();
    };
  });
}

function live(state, text) {
  if ($("live").dataset.state === state) return;
  $("live").dataset.state = state;
  $("live-text").textContent = text;
}

function banner(text, kind = "note") {
  const box = $("banner");
  if (box.textContent !== text) box.textContent = text;
  box.dataset.kind = kind;
  box.hidden = !text;
}

function apply(state) {
  const before = page.state;
  const restarted = before && before.boot !== state.boot;
  page.state = state;
  if ($("banner").dataset.kind === "bad") banner("");
  $("generation").textContent = state.platform;
  $("generation").hidden = false;
  $("fault-count").textContent = state.faults.length;
  $("fault-count").hidden = !state.faults.length;
  $("fault-count").title = "active faults";
  if (restarted) {
    page.rows.clear();
    banner("The sandbox was started again.");
    setTimeout(() => $("banner").dataset.kind === "note" && banner(""), 6000);
  }
  if (!page.workspace || !workspaceOf(page.workspace)) choose();
  else if (restarted) open(page.workspace, page.voice);
  else if (!before || before.top !== state.top || hasLate()) refresh();
  renderWorkspaces();
  renderStatus();
  renderWaiting();
  if (!before || restarted || before.faults.join() !== state.faults.join()) renderFaults();
  if (!$("panel").hidden && current() === "rows" && (restarted || before?.top !== state.top)) loadRows();
}

function choose() {
  const [, id, voice] = location.hash.split("/");
  const known = workspaceOf(decodeURIComponent(id ?? "")) ?? page.state.workspaces[0];
  const gone = page.workspace && page.workspace !== known?.id;
  // A workspace that is gone leaves its unsent text to the next one.
  const draft = gone ? $("text").value : "";
  if (known) {
    open(known.id, id === known.id && voice ? decodeURIComponent(voice) : "person");
    if (draft && !$("text").value) setDraft(draft);
  } else {
    page.workspace = null;
    $("chat-name").textContent = "No workspace";
    $("messages").replaceChildren();
  }
}

// Workspaces

function renderWorkspaces() {
  const list = $("workspace-list");
  const kept = new Map([...list.children].map((item) => [item.dataset.id, item]));
  const items = page.state.workspaces.map((one) => {
    const item = kept.get(one.id) ?? workspaceItem(one.id);
    const [kind, text] = condition(one);
    const button = item.firstChild;
    const isOpen = one.id === page.workspace;
    if (isOpen && page.voice === "person" && !document.hidden) markHeard(one);
    const isNew = one.heard > (page.heard[one.id] ?? 0);
    button.toggleAttribute("aria-current", isOpen);
    if (isOpen) button.setAttribute("aria-current", "true");
    button.querySelector(".dot").dataset.kind = kind;
    setText(button.querySelector(".name"), one.name);
    setText(button.querySelector(".state"), text);
    button.querySelector(".new").hidden = !isNew;
    return item;
  });
  if (items.length !== list.children.length || items.some((item, index) => list.children[index] !== item)) {
    list.replaceChildren(...items);
  }
  $("no-workspaces").hidden = items.length > 0;
  const unread = page.state.workspaces.filter((one) => one.heard > (page.heard[one.id] ?? 0)).length;
  const name = workspaceOf(page.workspace)?.name;
  document.title = `${unread ? `(${unread}) ` : ""}${name ? `${name} – ` : ""}Molecule sandbox`;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function workspaceItem(id) {
  const button = make(
    "button",
    { type: "button", onclick: () => { open(id, "person"); closeSide(); $("chat-name").focus(); } },
    make("span", { class: "dot", "aria-hidden": "true" }),
    make("span", { class: "name" }),
    make("span", { class: "new", text: "new" }),
    make("span", { class: "state" }),
  );
  return make("li", { "data-id": id }, button);
}

function markHeard(one) {
  if ((page.heard[one.id] ?? 0) >= one.heard) return;
  page.heard[one.id] = one.heard;
  const known = new Set(page.state.workspaces.map(({ id }) => id));
  page.heard = Object.fromEntries(Object.entries(page.heard).filter(([id]) => known.has(id)));
  stored("heard", JSON.stringify(page.heard));
}

function renderStatus() {
  const one = workspaceOf(page.workspace);
  if (!one) return;
  const [, text] = condition(one);
  setText($("chat-name"), one.name);
  setText($("chat-status"), text + (one.beat ? `, last heartbeat ${ago(one.beat)}` : ""));
  $("chat-status").title = $("chat-status").textContent;
}

// The conversation

function open(id, voice) {
  page.workspace = id;
  page.voice = voice;
  page.loading += 1;
  page.messages = new Map();
  page.rows = new Map();
  $("rows").replaceChildren();
  $("messages").replaceChildren();
  $("earlier").hidden = true;
  $("jump").hidden = true;
  $("waiting").hidden = true;
  $("welcome").hidden = true;
  error("");
  const hash = `#/${encodeURIComponent(id)}/${encodeURIComponent(voice)}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
  setDraft(stored(draftKey()) ?? "");
  renderFiles();
  if (page.state) {
    renderWorkspaces();
    renderStatus();
  }
  load();
  if (!$("panel").hidden) showView(current());
}

async function load() {
  const { loading } = page;
  $("log").setAttribute("aria-live", "off");
  try {
    const found = await getJson(onPath(`messages?as=${encodeURIComponent(page.voice)}&limit=${PAGE_SIZE}`));
    if (loading !== page.loading) return;
    take(found);
    $("earlier").hidden = !found.more;
    toEnd();
    renderWaiting();
    // Screen readers read what arrives from here on, not the history.
    setTimeout(() => loading === page.loading && $("log").setAttribute("aria-live", "polite"), 400);
  } catch (problem) {
    if (loading === page.loading) error(problem.message);
  }
}

const newest = () => Math.max(0, ...page.messages.keys());
const hasLate = () => [...page.messages.values()].some((message) => message.late);

async function refresh() {
  page.stale = true;
  if (page.refreshing) return;
  page.refreshing = true;
  try {
    while (page.stale) {
      page.stale = false;
      const { loading } = page;
      // Rows that are late change later, so their page is read again.
      const late = [...page.messages.values()].filter((message) => message.late).map((message) => message.seq);
      const after = Math.max(0, late.length ? Math.min(...late) - 1 : newest());
      const query = `as=${encodeURIComponent(page.voice)}&after=${after}&limit=200`;
      const found = await getJson(onPath(`messages?${query}`));
      if (loading !== page.loading) continue;
      const isAtEnd = atEnd();
      const count = take(found);
      if (found.more && after) page.stale = true;
      if (count && isAtEnd) toEnd();
      else if (count) $("jump").hidden = false;
      renderWaiting();
    }
  } catch {
    // The stream reports a sandbox that is gone, and its next event starts another try.
  } finally {
    page.refreshing = false;
  }
}

async function earlier() {
  const { loading } = page;
  const log = $("log");
  const first = Math.min(...page.messages.keys());
  $("earlier").disabled = true;
  try {
    const query = `as=${encodeURIComponent(page.voice)}&before=${first}&limit=${PAGE_SIZE}`;
    const found = await getJson(onPath(`messages?${query}`));
    if (loading !== page.loading) return;
    const fromEnd = log.scrollHeight - log.scrollTop;
    log.setAttribute("aria-live", "off");
    take(found);
    $("earlier").hidden = !found.more;
    log.scrollTop = log.scrollHeight - fromEnd;
    if (!found.more) log.focus();
    setTimeout(() => log.setAttribute("aria-live", "polite"), 400);
  } catch (problem) {
    error(problem.message);
  } finally {
    $("earlier").disabled = false;
  }
}

function take({ messages, voices }) {
  let count = 0;
  const list = $("messages");
  for (const message of messages) {
    const known = page.messages.get(message.seq);
    if (known && known.late === message.late) continue;
    page.messages.set(message.seq, message);
    const element = render(message);
    const old = known && list.querySelector(`[data-seq="${message.seq}"]`);
    if (old) old.replaceWith(element);
    else {
      count += 1;
      const next = [...list.children].findLast((item) => Number(item.dataset.seq) < message.seq);
      if (next) next.after(element);
      else list.prepend(element);
    }
    fold(element);
  }
  renderVoices(voices);
  return count;
}

function speaker(message) {
  if (message.from === "agent") return workspaceOf(page.workspace)?.name ?? "agent";
  if (message.from === "person") return "You";
  const voice = page.voices.find((one) => one.id === page.voice);
  return page.voice === "peer" ? "You, as a peer" : (voice?.name ?? "peer");
}

function render(message) {
  const mine = message.from !== "agent";
  const kind = `message ${mine ? "mine" : "agent"} ${message.from} ${message.notice ? "notice" : ""}`;
  const item = make("li", { class: kind.trim(), "data-seq": message.seq });
  const time = new Date(message.time);
  const head = make(
    "div",
    { class: "head" },
    make("span", { class: "who", text: speaker(message) }),
    make("time", { datetime: time.toISOString(), title: time.toLocaleString(), text: clock(message.time) }),
  );
  if (message.late) {
    head.append(make("span", { class: "tag", text: "not visible to the connector yet", title: "The fault late-commits" }));
  }
  item.append(head);
  if (message.text || message.unreadable) item.append(bubble(message));
  if (message.files.length) item.append(make("div", { class: "attached" }, ...message.files.map(attached)));
  return item;
}

function bubble(message) {
  const body = make("div", { class: "body" });
  if (message.unreadable) body.append(make("p", { text: "This message can't be shown: its JSON is nested too deep." }));
  else if (message.html !== null) body.innerHTML = policy ? policy.createHTML(message.html) : message.html;
  else body.append(make("p", { class: "plain", text: message.text }));
  for (const block of body.querySelectorAll("pre, table")) block.tabIndex = 0;
  const box = make("div", { class: "bubble" }, body);
  if (message.cut) {
    box.append(make("p", { class: "meta", text: `… and ${message.cut.toLocaleString()} more characters.` }));
  }
  if (message.notice) {
    box.append(make("button", { type: "button", class: "link", text: "Why? Show dead letters", onclick: () => openPanel("dead") }));
  }
  return box;
}

function fold(item) {
  const body = item.querySelector(".body");
  if (!body || body.scrollHeight <= FOLD) return;
  body.dataset.folded = "";
  const button = make("button", { type: "button", class: "more", text: "Show all", "aria-expanded": "false" });
  button.addEventListener("click", () => {
    const folded = body.toggleAttribute("data-folded");
    button.textContent = folded ? "Show all" : "Show less";
    button.setAttribute("aria-expanded", String(!folded));
    if (folded) item.scrollIntoView({ block: "nearest" });
  });
  body.after(button);
}

const PREVIEWED = ["image/png", "image/jpeg", "image/gif", "image/webp"];

function attached(file) {
  const about = make("span", { class: "about" }, make("span", { class: "file-name", text: file.name }));
  const facts = [file.size === null ? "" : size(file.size), file.source === "link" ? "link" : "", file.source ? "" : "not available"];
  about.append(make("small", { text: facts.filter(Boolean).join(", ") || file.type }));
  const isKept = file.source === "upload" || file.source === "inline";
  if (isKept && PREVIEWED.includes(file.type)) {
    const picture = make("img", { class: "shown", src: file.address, alt: file.name, loading: "lazy" });
    const link = make("a", { class: "preview", href: file.address, download: file.name, title: `Download ${file.name}` }, picture);
    picture.addEventListener("load", () => $("jump").hidden && page.pinned && toEnd());
    picture.addEventListener("error", () => link.replaceWith(attached({ ...file, type: "" })));
    return link;
  }
  if (isKept) return make("a", { class: "file", href: file.address, download: file.name }, icon(FILE_ICON), about);
  if (file.source === "link") {
    return make("a", { class: "file", href: file.address, target: "_blank", rel: "noopener noreferrer" }, icon(FILE_ICON), about);
  }
  return make("span", { class: "file" }, icon(FILE_ICON), about);
}

function renderVoices(voices) {
  page.voices = voices;
  const select = $("voice");
  const known = [...select.options].map((option) => option.value + option.textContent).join();
  if (known !== voices.map(({ id, name }) => id + name).join()) {
    select.replaceChildren(...voices.map(({ id, name }) => make("option", { value: id, text: name })));
  }
  if (!voices.some(({ id }) => id === page.voice)) open(page.workspace, "person");
  select.value = page.voice;
  const as = page.voice === "person" ? "" : page.voice === "peer" ? " as a peer" : ` as ${select.selectedOptions[0]?.textContent}`;
  $("text").placeholder = `Write a message${as}`;
}

function renderWaiting() {
  const one = workspaceOf(page.workspace);
  const last = page.messages.get(newest());
  $("welcome").hidden = page.messages.size > 0 || !one;
  if (one && !page.messages.size) renderWelcome(one);
  const box = $("waiting");
  if (!one || !last || last.from === "agent") {
    box.hidden = true;
    return;
  }
  const isAtEnd = atEnd();
  const lines = [];
  let moving = false;
  if (one.status === "paused") lines.push([`${one.name} is paused. The message waits until it is resumed.`]);
  else if (one.push) lines.push([`${one.name} is in push mode, to which the sandbox does not deliver.`]);
  else if (!isServed(one)) {
    lines.push([`No connector serves ${one.name}. The message waits on the platform.`]);
    lines.push(["Start one: ", make("code", { text: `molecule connect ${one.id} --backend mock` })]);
  } else if (one.wedged) lines.push([`The connector reports that it is stuck: ${one.error}`]);
  else if (!one.tasks && one.beat > last.time + WAIT) lines.push(["No answer so far. The connector reports that it works on nothing."]);
  else {
    moving = true;
    const progress = one.tasks && one.task && !last.text.startsWith(one.task) ? `: ${one.task}` : "…";
    lines.push([`${one.name} is working${progress}`]);
  }
  const text = lines.map((line) => line.map((part) => part.textContent ?? part).join("")).join("\n");
  if (box.hidden || box.dataset.text !== text) {
    box.dataset.text = text;
    $("waiting-text").replaceChildren(...lines.map((line) => make("p", {}, ...line)));
    box.querySelector(".dots").hidden = !moving;
    box.hidden = false;
    if (isAtEnd) toEnd();
  }
}

function renderWelcome(one) {
  const box = $("welcome");
  const served = isServed(one);
  const text = `${one.id} ${one.name} ${served} ${page.voice}`;
  if (box.dataset.text === text) return;
  box.dataset.text = text;
  const as = page.voice === "person" ? "" : " Its answers to a peer appear here.";
  box.replaceChildren(make("h3", { text: served ? `Say hello to ${one.name}` : `${one.name} waits for a connector` }));
  if (served) {
    box.append(make("p", { text: `A connector answers for it.${as}` }));
    return;
  }
  box.append(
    make("p", { text: `Messages are kept until one answers.${as}` }),
    make(
      "div",
      { class: "steps" },
      make("p", {}, "In a terminal, paste the three ", make("code", { text: "export" }), " lines that the sandbox printed, then:"),
      make("p", {}, make("code", { text: "molecule connect --backend mock" })),
    ),
  );
}

function atEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
}

function toEnd() {
  $("log").scrollTop = $("log").scrollHeight;
  $("jump").hidden = true;
  page.pinned = true;
}

// The message field

const draftKey = () => `draft ${page.workspace} ${page.voice}`;

function setDraft(text) {
  $("text").value = text;
  stored(draftKey(), text);
  grow();
}

function grow() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
  $("send").disabled = page.sending || (!text.value.trim() && !chosen().length);
}

function error(text) {
  $("send-error").textContent = text;
  $("send-error").hidden = !text;
}

const chosen = () => page.files.get(draftKey()) ?? [];

function addFiles(files) {
  page.files.set(draftKey(), [...chosen(), ...files]);
  renderFiles();
  $("text").focus();
}

function renderFiles() {
  const chips = chosen().map((file) => {
    const remove = make("button", { type: "button", class: "icon", "aria-label": `Remove ${file.name}` }, icon(CLOSE_ICON));
    remove.addEventListener("click", () => {
      page.files.set(draftKey(), chosen().filter((one) => one !== file));
      renderFiles();
      ($("chips").querySelector("button") ?? $("text")).focus();
    });
    return make("li", {}, make("span", { text: file.name }), make("small", { text: size(file.size) }), remove);
  });
  $("chips").replaceChildren(...chips);
  $("chips").hidden = !chips.length;
  grow();
}

async function send() {
  const text = $("text").value;
  if (page.sending || !page.workspace || (!text.trim() && !chosen().length)) return;
  const { loading, voice } = page;
  const files = chosen();
  const key = draftKey();
  const form = new FormData();
  form.append("as", voice);
  form.append("text", text);
  for (const file of files) form.append("files", file, file.name);
  page.sending = true;
  error("");
  $("text").readOnly = true;
  $("composer").setAttribute("aria-busy", "true");
  grow();
  try {
    await request(onPath("messages"), { method: "POST", body: form });
    stored(key, "");
    page.files.delete(key);
    if (loading === page.loading) {
      setDraft("");
      toEnd();
      refresh();
    }
  } catch (problem) {
    // The text and the files stay in the field.
    error(`Not sent. ${problem.message}`);
  } finally {
    page.sending = false;
    $("text").readOnly = false;
    $("composer").removeAttribute("aria-busy");
    renderFiles();
  }
}

// The panel

const VIEWS = ["rows", "dead", "faults"];
const current = () => VIEWS.find((name) => $(`tab-${name}`).getAttribute("aria-selected") === "true");

function openPanel(view = current()) {
  $("panel").hidden = false;
  $("columns").dataset.panel = "";
  $("show-panel").setAttribute("aria-expanded", "true");
  shade();
  showView(view);
  $(`tab-${view}`).focus();
}

function closePanel() {
  $("panel").hidden = true;
  delete $("columns").dataset.panel;
  $("show-panel").setAttribute("aria-expanded", "false");
  shade();
  $("show-panel").focus();
}

function showView(view) {
  for (const name of VIEWS) {
    const isShown = name === view;
    $(`tab-${name}`).setAttribute("aria-selected", String(isShown));
    $(`tab-${name}`).tabIndex = isShown ? 0 : -1;
    $(`view-${name}`).hidden = !isShown;
  }
  if (!page.workspace && view !== "faults") return;
  if (view === "rows") loadRows();
  if (view === "dead") loadDead();
  if (view === "faults") loadFaults();
}

async function loadRows(before = 0) {
  const { loading } = page;
  try {
    const found = await getJson(onPath(`rows?limit=${PAGE_SIZE}${before ? `&before=${before}` : ""}`));
    if (loading !== page.loading) return;
    const list = $("rows");
    for (const row of found.rows) {
      const known = page.rows.get(row.seq);
      if (known === row.late) continue;
      page.rows.set(row.seq, row.late);
      const item = rowItem(row);
      const old = list.querySelector(`[data-seq="${row.seq}"]`);
      const next = [...list.children].find((one) => Number(one.dataset.seq) < row.seq);
      if (old) old.replaceWith(item);
      else if (next) next.before(item);
      else list.append(item);
    }
    $("no-rows").hidden = page.rows.size > 0;
    if (before || page.rows.size <= PAGE_SIZE) $("older-rows").hidden = !found.more;
  } catch {
    // The stream reports a sandbox that is gone.
  }
}

function rowItem(row) {
  const sender = row.source === null ? "a person" : (nameOf(row.source) ?? row.source.slice(0, 8));
  const source = row.method === "chat_upload_receive" && row.source === null ? "an upload" : sender;
  const pre = make("pre", { tabindex: "0" });
  const details = make(
    "details",
    {},
    make(
      "summary",
      {},
      make("span", { text: `#${row.seq}` }),
      make("b", { text: row.method || row.type }),
      make("span", { text: new Date(row.time).toLocaleTimeString() }),
      make("small", { text: `from ${source}${row.late ? ", not visible yet" : ""}` }),
    ),
    pre,
  );
  details.addEventListener("toggle", () => {
    if (!details.open || pre.textContent) return;
    let text = row.wire;
    try {
      if (!row.cut) text = JSON.stringify(JSON.parse(row.wire), null, 2);
    } catch {
      // Shown as it is.
    }
    pre.textContent = row.cut ? `${text}\n… and ${row.cut.toLocaleString()} more characters` : text;
  });
  return make("li", { "data-seq": row.seq }, details);
}

function nameOf(id) {
  if (page.voices.some((voice) => voice.peer === id)) return "you, as a peer";
  return workspaceOf(id)?.name;
}

async function loadDead() {
  const { loading } = page;
  const box = $("dead");
  box.setAttribute("aria-busy", "true");
  if (!box.children.length) box.replaceChildren(make("p", { class: "empty", text: "Reading the journal…" }));
  try {
    const found = await getJson(onPath("dead-letters"));
    if (loading !== page.loading) return;
    const children = [make("h3", { text: "Of the connector on this machine" })];
    if (found.problem) children.push(make("p", { class: "empty", text: `Not known: ${found.problem}.` }));
    else if (!found.journal.length) children.push(make("p", { class: "empty", text: "None." }));
    children.push(...found.journal.map((one) => letter(one, `molecule messages replay ${one.row_id}`)));
    children.push(make("h3", { text: "Failures that the platform knows" }));
    if (!found.platform.length) children.push(make("p", { class: "empty", text: "None." }));
    children.push(...found.platform.map((one) => letter(one, "")));
    box.replaceChildren(make("div", { class: "letters" }, ...children));
  } catch (problem) {
    box.replaceChildren(make("p", { class: "error", text: problem.message }));
  } finally {
    box.removeAttribute("aria-busy");
  }
}

function letter(one, command) {
  const facts = [clock(Date.parse(one.time)), one.attempts ? `${one.attempts} attempt${one.attempts === 1 ? "" : "s"}` : ""];
  const item = make(
    "article",
    { class: "letter" },
    make("p", { text: one.text || "(no text)" }),
    make("p", { class: "why", text: one.reason || "no reason was recorded" }),
    make("p", { class: "meta", text: facts.filter(Boolean).join(", ") }),
  );
  if (command) {
    const copy = make("button", { type: "button", class: "quiet", text: "Copy", "aria-label": "Copy the command" });
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(copy.previousSibling);
      }
    });
    item.append(make("div", { class: "fix" }, make("code", { text: command }), copy));
  }
  return item;
}

async function loadFaults() {
  if (!page.kinds.length) {
    try {
      page.kinds = (await getJson("/faults")).kinds;
    } catch (problem) {
      faultError(problem.message);
      return;
    }
  }
  renderFaults();
}

const kindOf = (text) => text.split(/[=,]/)[0].trim();

function faultError(text) {
  $("fault-error").textContent = text;
  $("fault-error").hidden = !text;
}

function renderFaults() {
  const list = $("faults");
  if (!list.children.length) list.append(...page.kinds.map(faultItem));
  const active = page.state?.faults ?? [];
  $("no-faults").hidden = !active.length;
  for (const item of list.children) {
    const own = active.filter((text) => kindOf(text) === item.dataset.kind);
    item.firstChild.toggleAttribute("data-on", own.length > 0);
    item.querySelector("[role=switch]").checked = own.length > 0;
    const summary = item.querySelector("summary");
    setText(summary, own.length ? `Options: ${own.join(" and ")}` : "Options");
  }
}

function faultItem(kind) {
  const name = `fault-${kind.name}`;
  const toggle = make("input", { type: "checkbox", role: "switch", id: name, "aria-describedby": `${name}-help` });
  const value = make("input", { type: "text", placeholder: kind.default, autocomplete: "off", spellcheck: "false" });
  const filters = make("input", { type: "text", placeholder: "path=/notify,chance=0.5,times=3", autocomplete: "off", spellcheck: "false" });
  const text = () => {
    const parts = [value.value.trim(), filters.value.trim()].filter(Boolean).join(",");
    return parts ? `${kind.name}=${parts}` : kind.name;
  };
  toggle.addEventListener("change", () => setFault(kind.name, toggle.checked ? text() : null));
  for (const field of [value, filters]) {
    field.addEventListener("change", () => toggle.checked && setFault(kind.name, text()));
  }
  const options = make("div", { class: "options" });
  if (kind.argument) options.append(make("label", {}, kind.argument, value));
  options.append(make("label", {}, "only for", filters));
  return make(
    "li",
    { "data-kind": kind.name },
    make(
      "div",
      { class: "fault" },
      make(
        "label",
        { class: "switch", for: name },
        make("span", { class: "fault-name", text: kind.name }),
        make("span", { class: "fault-help", id: `${name}-help`, text: kind.help }),
        toggle,
      ),
      make("details", {}, make("summary", { text: "Options" }), options),
    ),
  );
}

async function setFault(name, text) {
  const others = page.state.faults.filter((one) => kindOf(one) !== name);
  await putFaults(text === null ? others : [...others, text]);
}

async function putFaults(faults) {
  faultError("");
  try {
    const body = JSON.stringify({ faults });
    const response = await request("/faults", { method: "PUT", body, headers: { "Content-Type": "application/json" } });
    page.state.faults = (await response.json()).faults;
  } catch (problem) {
    faultError(problem.message);
  }
  renderFaults();
}

// Overlays on narrow screens

function shade() {
  const covers = $("workspaces").hasAttribute("data-open") || (!$("panel").hidden && matchMedia("(max-width: 1099px)").matches);
  document.querySelector(".shade")?.remove();
  $("chat").inert = covers;
  $("workspaces").inert = covers && !$("workspaces").hasAttribute("data-open");
  if (!covers) return;
  const cover = make("div", { class: "shade", "aria-hidden": "true" });
  cover.addEventListener("click", () => ($("workspaces").hasAttribute("data-open") ? closeSide() : closePanel()));
  $("columns").append(cover);
}

function openSide() {
  $("workspaces").dataset.open = "";
  $("show-workspaces").setAttribute("aria-expanded", "true");
  shade();
  ($("workspaces").querySelector("[aria-current]") ?? $("hide-workspaces")).focus();
}

function closeSide() {
  if (!$("workspaces").hasAttribute("data-open")) return;
  delete $("workspaces").dataset.open;
  $("show-workspaces").setAttribute("aria-expanded", "false");
  shade();
  $("show-workspaces").focus();
}

// Events

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("text").addEventListener("input", () => {
  stored(draftKey(), $("text").value);
  grow();
});
$("text").addEventListener("keydown", (event) => {
  // On a touch keyboard, Enter starts a new line.
  const sends = event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches;
  if (!sends) return;
  event.preventDefault();
  send();
});
$("text").addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  addFiles(files);
});
$("attach").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", () => {
  addFiles($("files").files);
  $("files").value = "";
});
$("voice").addEventListener("change", () => open(page.workspace, $("voice").value));
$("earlier").addEventListener("click", earlier);
$("jump").addEventListener("click", () => {
  toEnd();
  $("log").focus();
});
$("log").addEventListener("scroll", () => {
  page.pinned = atEnd();
  if (page.pinned) $("jump").hidden = true;
});
$("show-panel").addEventListener("click", () => ($("panel").hidden ? openPanel() : closePanel()));
$("hide-panel").addEventListener("click", closePanel);
$("show-workspaces").addEventListener("click", openSide);
$("hide-workspaces").addEventListener("click", closeSide);
$("older-rows").addEventListener("click", () => loadRows(Math.min(...page.rows.keys())));
$("refresh-dead").addEventListener("click", loadDead);
$("no-faults").addEventListener("click", async () => {
  await putFaults([]);
  $("tab-faults").focus();
});
for (const view of VIEWS) $(`tab-${view}`).addEventListener("click", () => showView(view));
document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const at = VIEWS.indexOf(current());
  const next = step ? (at + step + VIEWS.length) % VIEWS.length : { Home: 0, End: VIEWS.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  showView(VIEWS[next]);
  $(`tab-${VIEWS[next]}`).focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if ($("workspaces").hasAttribute("data-open")) closeSide();
  else if ($("panel").contains(document.activeElement)) closePanel();
});

let dragged = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  dragged += 1;
  $("drop").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!hasFiles(event)) return;
  dragged -= 1;
  $("drop").hidden = dragged > 0 ? $("drop").hidden : true;
});
// A file that is dropped beside the chat would otherwise replace the page.
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  addFiles(event.dataTransfer.files);
});

matchMedia("(max-width: 1099px)").addEventListener("change", shade);
window.addEventListener("online", () => wake());
window.addEventListener("hashchange", () => page.state && choose());
document.addEventListener("visibilitychange", () => {
  if (document.hidden || !page.state) return;
  wake();
  renderWorkspaces();
});
setInterval(renderStatus, 5000);
setInterval(renderWaiting, 5000);
follow();
