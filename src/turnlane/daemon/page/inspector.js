"use strict";
// The inspector. What the daemon says is put into the page as text, never as markup; the token lives in `token`.

const API = "/internal/v1";
const READY_EVERY_MS = 5000;
const EVENTS_SHOWN = 200;
const EVENTS_BEFORE = 50;
const AGAIN_MS = [500, 1000, 2000, 5000, 15000];

const $ = id => document.getElementById(id);
let token = null;
let view = 0; // grows with each view: what was asked for an earlier one is dropped
let stream = null; // the event stream of the view, if it has one

// values into elements

function el(name, given, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(given || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...inside.filter(one => one !== null).map(one => one instanceof Node ? one : String(one)));
  return made;
}

const time = text => text ? el("time", {datetime: text, title: text}, new Date(text).toLocaleString()) : "–";
const word = text => el("span", {class: "word", "data-word": String(text)}, text === null ? "unreadable" : text);
const nothing = text => el("p", {class: "nothing"}, text);
const owner = one => one === null ? "–" : one.user_id === null ? "guest " + one.guest_scope : "user " + one.user_id;
const plain = value => value === null || value === undefined || value === "" ? "–" : String(value);

function shown(value) {
  if (value === null || typeof value !== "object") return plain(value);
  return Object.keys(value).length ? el("code", {}, JSON.stringify(value)) : "–";
}

function facts(pairs) {
  return el("dl", {}, ...pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function table(caption, heads, rows, none) {
  if (!rows.length) return nothing(none);
  const cells = row => row.map((cell, at) => el("td", {"data-head": heads[at]}, cell));
  return el("div", {class: "wide"}, el("table", {},
    el("caption", {class: "unseen"}, caption),
    el("thead", {}, el("tr", {}, ...heads.map(head => el("th", {scope: "col"}, head)))),
    el("tbody", {}, ...rows.map(row => el("tr", {}, ...cells(row))))));
}

function json(title, value) {
  return el("details", {}, el("summary", {}, title), el("pre", {}, JSON.stringify(value, null, 2)));
}

// asking

class No extends Error {
  constructor(status, told) {
    super(told.message || (status === 404 ? "There is nothing of that name" + (token === null ? "." : " for this token.") : "HTTP " + status));
    this.status = status;
    this.reason = told.reason_code || told.error;
  }
}

class Gone extends Error {}

async function ask(path, method) {
  let answer;
  try {
    const headers = token === null ? {} : {authorization: "Bearer " + token};
    answer = await fetch(path, {method: method || "GET", headers, cache: "no-store"});
  } catch {
    throw new Gone("The daemon does not answer.");
  }
  const told = await answer.json().catch(() => ({}));
  if (token === null && path.startsWith(API) && answer.status !== 401) $("door").hidden = true; // authentication is off
  if (!answer.ok && path !== "/readyz") throw new No(answer.status, told);
  return told;
}

const query = members => new URLSearchParams(Object.entries(members).filter(([, value]) => value)).toString();

function complain(error) {
  if (!(error instanceof No || error instanceof Gone)) console.error(error);
  $("alert").textContent = error.message;
  $("alert").hidden = error instanceof No && error.status === 401 && token === null; // not asked yet
  if (!(error instanceof No) || error.status !== 401) return;
  use(null);
  $("main").replaceChildren(nothing("Paste an operator token above to look inside."));
  $("token").focus();
}

function use(given) {
  token = given;
  $("token").value = "";
  $("token").placeholder = given === null ? "" : "a token is in use";
  $("token").required = given === null;
  $("forget").hidden = given === null;
  $("token-about").hidden = given !== null;
}

// views: each fills `main` and is given its number

async function listed(mine, title, path, members, rowsOf, table) {
  const main = $("main"), place = el("div", {}, nothing("Asking …")), rows = [];
  const more = el("button", {type: "button", hidden: true, onclick: () => turn()}, "More");
  const again = el("button", {type: "button", onclick: show}, "Refresh");
  main.replaceChildren(el("div", {class: "bar"}, el("h2", {}, title), again), place, more);
  let next = null;
  async function turn() {
    const page = await guarded(() => ask(`${path}?${query({...members, after: next, limit: 100})}`));
    if (page === undefined && !rows.length) place.replaceChildren(nothing("Nothing could be read."));
    if (page === undefined || mine !== view) return;
    rows.push(...rowsOf(page));
    next = page.next;
    more.hidden = next === null;
    place.replaceChildren(table(rows));
  }
  await turn();
}

const views = {
  sessions: mine => listed(mine, "Sessions", `${API}/sessions`, {}, page => page.sessions, rows => table(
    "Sessions", ["Session", "Phase", "Turn", "Head", "Attached"],
    rows.map(one => [el("a", {href: "#/sessions/" + encodeURIComponent(one.session)}, one.session),
      word(one.phase), plain(one.turn), one.head_seq, one.attachments]),
    "No session yet that this token may read.")),

  async session(mine, name) {
    const path = `${API}/sessions/${encodeURIComponent(name)}`;
    const status = el("section", {"aria-label": "Status"}), log = el("ol", {class: "log", reversed: true});
    const state = el("span", {class: "pill", role: "status"}, "connecting …");
    $("main").replaceChildren(back("sessions", "All sessions"), el("h2", {}, name), status,
      el("div", {class: "bar"}, el("h3", {}, "Events"), state), log);
    let asked = false;
    async function read() {
      asked = false;
      const told = await guarded(() => ask(path));
      if (told === undefined || mine !== view) return null;
      status.replaceChildren(facts([["Phase", word(told.phase)], ["Condition", word(told.condition)],
        ["Turn", shown(told.turn && told.turn.turn)], ["Turn phase", shown(told.turn && told.turn.phase)],
        ["Queued", told.queued], ["Profile", told.profile], ["Overlap", told.overlap], ["Epoch", told.epoch],
        ["Head", told.head_seq], ["Floor", told.floor_seq],
        ["Open questions", told.pending_requests.join(", ") || "–"],
        ["Attached", told.attachments.map(one => `${one.client || one.attachment} (${one.role})`).join(", ") || "–"]]));
      return told;
    }
    function soon() {
      if (!asked) setTimeout(read, 300);
      asked = true;
    }
    const told = await read();
    if (told === null) return;
    follow(mine, path, Math.max(told.head_seq - EVENTS_BEFORE, told.floor_seq - 1, 0), text => {
      state.textContent = text;
      state.dataset.state = text.split(" ")[0];
      soon();
    }, event => {
      log.prepend(line(event.seq, event.type, event.at, event.data));
      while (log.children.length > EVENTS_SHOWN) log.lastChild.remove();
      soon();
    });
  },

  runs: mine => listed(mine, "Runs", `${API}/runs`, {}, page => page.runs, rows => table(
    "Runs", ["Run", "Status", "Worker", "Events", "Updated"],
    rows.map(one => [el("a", {href: "#/runs/" + encodeURIComponent(one.id)}, one.id), word(one.status),
      plain(one.worker_id), one.last_seq, time(one.updated_at)]),
    "No run yet that this token may read.")),

  async run(mine, id) {
    const main = $("main"), log = el("ol", {class: "log"});
    main.replaceChildren(back("runs", "All runs"), el("h2", {class: "id"}, id));
    let after = 0;
    const more = el("button", {type: "button", hidden: true, onclick: () => turn()}, "More");
    async function turn() {
      const told = await guarded(() => ask(`${API}/runs/${encodeURIComponent(id)}?${query({after_seq: after, limit: 100})}`));
      if (told === undefined || mine !== view) return;
      const {run} = told;
      if (!after) {
        main.append(facts([["Status", word(run.status)], ["Blocked", shown(run.blocked)], ["Worker", plain(run.worker_id)],
          ["Owner", owner(run.owner)], ["Created", time(run.created_at)], ["Updated", time(run.updated_at)],
          ["Metadata", shown(run.metadata)]]), el("h3", {}, "Events"), log, more);
      }
      log.append(...run.events.map(one => line(one.seq, one.event_type, one.recorded_at, one.payload)));
      after = run.events_page.next_after_seq;
      more.hidden = run.events_page.complete;
    }
    await turn();
  },

  async workers(mine) {
    const kind = el("select", {id: "kind"}, el("option", {value: "owner_user_id"}, "user"),
      el("option", {value: "owner_guest_scope"}, "guest"));
    const whose = el("input", {id: "whose", autocomplete: "off", spellcheck: "false", required: true});
    const found = el("div", {});
    async function turn(event) {
      event.preventDefault();
      const page = await guarded(() => ask(`${API}/workers?${query({[kind.value]: whose.value.trim(), limit: 200})}`));
      if (page === undefined || mine !== view) return;
      found.replaceChildren(table("Workers", ["Worker", "Status", "Heartbeat", "Age", "Assigned", "Stalled since"],
        page.workers.map(({worker, liveness}) => [worker.worker_id, word(worker.status), word(liveness.heartbeat_state),
          liveness.heartbeat_age_ms === null ? "–" : (liveness.heartbeat_age_ms / 1000).toFixed(1) + " s",
          worker.assigned.length, time(worker.stalled_since)]), "This owner has no worker."),
        page.next === null ? "" : nothing("The first 200 are shown."));
    }
    $("main").replaceChildren(el("div", {class: "bar"}, el("h2", {}, "Workers")),
      el("form", {class: "ask", onsubmit: turn},
        el("label", {for: "kind"}, "Of the"), kind, el("label", {for: "whose", class: "unseen"}, "Name of the owner"),
        whose, el("button", {}, "Show")), found);
    if (token === null) await guarded(() => ask(`${API}/status`)); // whether one is needed at all
  },

  async status(mine) {
    const place = el("div", {});
    $("main").replaceChildren(el("div", {class: "bar"}, el("h2", {}, "Status"),
      el("button", {type: "button", onclick: show}, "Refresh")), place);
    const ready = await guarded(() => ask("/readyz"));
    if (ready === undefined || mine !== view) return;
    const notes = [...ready.reasons.map(one => ["reason", one]), ...ready.warnings.map(one => ["warning", one])];
    place.append(facts([["Authority", word(ready.authority_ready ? "ready" : "not ready")],
      ["Projections", word(ready.projector_ready ? "ready" : "not ready")],
      ["Workers", word(ready.workers_ready ? "ready" : "not ready")]]),
      ...notes.map(([kind, one]) => el("p", {class: "note", "data-kind": kind}, el("strong", {}, one.code), " ", one.message)));
    const told = await guarded(() => ask(`${API}/status`));
    if (told === undefined || mine !== view) return;
    const counts = Object.entries(told).filter(([, value]) => value === null || typeof value !== "object");
    place.append(el("h3", {}, "Runtime"), facts(counts.map(([name, value]) => [name.replaceAll("_", " "), plain(value)])),
      ...Object.entries(told).filter(([, value]) => value !== null && typeof value === "object" &&
        Object.keys(value).length).map(([name, value]) => json(name.replaceAll("_", " "), value)));
  },
};

const back = (where, text) => el("p", {class: "back"}, el("a", {href: "#/" + where}, "← " + text));

function line(seq, type, at, data) {
  const text = data === null || data === undefined ? "" : JSON.stringify(data);
  const clock = el("time", {datetime: at, title: at}, new Date(at).toLocaleTimeString());
  return el("li", {value: seq}, el("span", {class: "seq"}, seq), clock, el("strong", {}, type),
    text.length > 120 ? el("details", {}, el("summary", {}, text.slice(0, 118) + " …"), el("pre", {}, JSON.stringify(data, null, 2)))
      : el("code", {}, text));
}

// The event stream of a session: a ticket for each connection, and on from the last event that came.

async function follow(mine, path, after, say, take) {
  for (let tries = 0; mine === view; tries++) {
    try {
      const {ticket} = await ask(`${API}/tickets`, "POST");
      const why = await new Promise(ended => {
        if (mine !== view) return ended("left");
        const source = stream = new EventSource(`${path}/stream?${query({after_seq: String(after), ticket})}`);
        source.addEventListener("hello", () => { tries = 0; say("following"); });
        source.addEventListener("message", event => {
          after = Number(event.lastEventId);
          take(JSON.parse(event.data));
        });
        source.addEventListener("closed", event => ended(JSON.parse(event.data).reason_code));
        source.onerror = () => ended("cut");
      });
      if (mine === view && stream !== null) stream.close(); // by itself it would come back with the ticket that is spent
      if (why === "session_ended") return say("ended");
      if (why === "stale_cursor") after = (await ask(path)).floor_seq - 1;
    } catch (error) {
      if (error instanceof No && error.status !== 429 && error.status !== 503) {
        say("stopped");
        return complain(error);
      }
    }
    if (mine !== view) return;
    say("cut off, trying again …");
    await new Promise(later => setTimeout(later, AGAIN_MS[Math.min(tries, AGAIN_MS.length - 1)]));
  }
}

// the frame

async function guarded(asking) {
  const mine = view;
  try {
    const told = await asking();
    if (mine === view) $("alert").hidden = true;
    return told;
  } catch (error) {
    if (mine === view) complain(error);
    return undefined;
  }
}

function show() {
  view += 1;
  if (stream !== null) stream.close();
  stream = null;
  const [, where = "sessions", name] = location.hash.split("/");
  const detail = {sessions: "session", runs: "run"}[where];
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === "#/" + where) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("alert").hidden = true;
  if (name && detail) views[detail](view, decodeURIComponent(name));
  else (views[where] || views.sessions)(view);
}

let answered = true;
async function readiness() {
  if (!document.hidden) {
    const pill = $("ready");
    try {
      const told = await ask("/readyz");
      pill.textContent = told.ready ? "ready" : "not ready: " + told.reasons.map(one => one.code).join(", ");
      pill.dataset.state = told.ready ? "ready" : "not";
      if (!$("service").textContent || !answered) {
        const health = await ask("/healthz");
        $("service").textContent = `${health.name} ${health.version}, ${health.write_mode}`;
      }
      if (!answered) show();
      answered = true;
    } catch (error) {
      pill.textContent = "no answer";
      pill.dataset.state = "gone";
      answered = false;
    }
  }
  setTimeout(readiness, READY_EVERY_MS);
}

$("door").addEventListener("submit", event => {
  event.preventDefault();
  use($("token").value.trim() || token);
  show();
});
$("forget").addEventListener("click", () => location.reload());
window.addEventListener("hashchange", () => {
  show();
  $("main").focus();
});
readiness();
show();
