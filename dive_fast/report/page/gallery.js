// The gallery's page. Data comes from scripts beside it, one string each, handed over by `dive.put`; nothing of it is ever
// run or parsed as HTML: texts go in as text. Pairs are numbered from 0 in the order of the plan.
"use strict";

const PER_PAGE = 60;
const KEPT_RECORDS = 8; // chunks
const SIDES = { rgb: "RGB", ir: "infrared", pair: "pair" };
const MISSING = { rgb: 1, ir: 2 }, DAMAGED = { rgb: 4, ir: 8 };

const waiting = new Map();
window.dive = { put(name, text) { waiting.get(name)?.(text); } };

/** The string in data/NAME.js; rejects when there is no such file or it holds something else. */
function load(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const failed = () => { waiting.delete(name); script.remove(); reject(new Error(`data/${name}.js cannot be read`)); };
    waiting.set(name, (text) => { waiting.delete(name); script.remove(); resolve(text); });
    script.onerror = failed;
    script.onload = () => { if (waiting.has(name)) failed(); };
    script.src = `data/${name}.js`;
    document.head.append(script);
  });
}

/** `make`'s promise by key, made once; one that failed is made again when asked for again. */
function remembered(make) {
  const found = new Map();
  return (key) => {
    if (!found.has(key)) found.set(key, make(key).catch((error) => { found.delete(key); throw error; }));
    return found.get(key);
  };
}

const TYPES = { pid: Uint32Array, rgb: Uint16Array, ir: Uint16Array, status: Uint8Array, reasons: Uint32Array,
  flaws: Uint8Array, packs: Uint32Array };

const json = remembered(async (name) => JSON.parse(await load(name)));

/** Block of a column, "pid/0", as a typed array; files are little-endian, as is every machine with a browser today. */
const columnBlock = remembered(async (name) => {
  const text = atob(JSON.parse(await load(`columns/${name}`)));
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new (TYPES[name.split("/")[0]] || Float32Array)(bytes.buffer);
});

let index, identities;

/** As columnBlock, of a score: null for a block without any value. */
function scoreBlock(score, block) {
  return score.blocks.includes(block) ? columnBlock(`${score.column}/${block}`) : Promise.resolve(null);
}

const recordChunks = new Map();
async function record(pair) {
  const chunk = Math.floor(pair / index.chunk);
  if (!recordChunks.has(chunk)) {
    const loaded = JSON.parse(await load(`records/${Math.floor(chunk / 1000)}/${chunk}`));
    recordChunks.set(chunk, loaded);
    if (recordChunks.size > KEPT_RECORDS) recordChunks.delete(recordChunks.keys().next().value);
  }
  return recordChunks.get(chunk)[pair % index.chunk];
}

// ---- Elements ----

const $ = (id) => document.getElementById(id);

/** An element; properties are set, texts appended as text. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

const count = (number) => number.toLocaleString("en");
const decimal = (value) => Number(value.toPrecision(3)).toString();

/** A cell that is a number is a count; { value } is a number of another kind. */
const isNumber = (cell) => typeof cell === "number" || typeof cell.value === "number";
const shownAs = (cell) => (typeof cell === "number" ? count(cell) : typeof cell.value === "number" ? decimal(cell.value) : cell);

function row(cells, kind = "td") {
  return make("tr", {}, ...cells.map((cell, at) => {
    const tag = at === 0 ? "th" : kind;
    const element = make(tag, { className: isNumber(cell) ? "number" : "" }, shownAs(cell));
    if (tag === "th") element.scope = kind === "th" ? "col" : "row";
    return element;
  }));
}

function fillTable(id, header, rows) {
  const body = make("tbody", {}, ...rows.map((cells) => row(cells)));
  const head = make("thead", {}, row(header, "th"));
  const numeric = rows.length ? rows[0].map(isNumber) : [];
  [...head.rows[0].cells].forEach((cell, at) => { if (numeric[at]) cell.className = "number"; });
  $(id).replaceChildren(...(header.length ? [head, body] : [body]));
}

function link(text, go) {
  return make("button", { type: "button", onclick: go }, text);
}

// ---- What is shown: the fields of the form, the page and the open pair, kept in the address after # ----

const FIELDS = ["pid", "camera", "status", "score", "from", "to", "order"];
let state = { page: 1, pair: null };

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const next = { page: Math.max(1, parseInt(given.get("page"), 10) || 1), pair: null };
  if (/^\d+$/.test(given.get("pair") || "") && Number(given.get("pair")) < index.pairs) next.pair = Number(given.get("pair"));
  for (const name of FIELDS) next[name] = given.get(name) || "";
  return next;
}

function address(next) {
  const given = new URLSearchParams();
  for (const name of FIELDS) if (next[name]) given.set(name, next[name]);
  if (next.page > 1) given.set("page", next.page);
  if (next.pair !== null) given.set("pair", next.pair);
  return `#${given}`;
}

function go(change) {
  const target = address({ ...state, ...change });
  if (target === (location.hash || "#")) return;
  location.hash = target; // `hashchange` shows it
}

// ---- Filter and order ----

const currentScore = () => index.scores.find((score) => `${score.side}/${score.name}` === state.score);

function wantedIdentities() {
  const names = state.pid.split(",").map((name) => name.trim()).filter(Boolean);
  if (!names.length) return null;
  const wanted = new Set(names);
  const numbers = new Set();
  identities.forEach((name, number) => { if (wanted.has(name)) numbers.add(number); });
  return numbers;
}

/** Tests that a pair must pass, each on one block: a function of the columns' arrays gives one of the row. */
function tests(score) {
  const found = [];
  const people = wantedIdentities();
  if (people) found.push([["pid"], (pid) => (i) => people.has(pid[i])]);
  const camera = index.cameras.indexOf(state.camera);
  if (state.camera) found.push([["rgb", "ir"], (rgb, ir) => (i) => rgb[i] === camera || ir[i] === camera]);
  const [kind, ...rest] = state.status.split("/");
  const value = rest.join("/");
  if (kind === "status") {
    const status = index.statuses.findIndex(([name]) => name === value);
    found.push([["status"], (statuses) => (i) => statuses[i] === status]);
  } else if (kind === "reason") {
    const bit = index.reasons.findIndex(([name]) => name === value);
    found.push([["reasons"], (reasons) => (i) => bit >= 0 && (reasons[i] >>> bit & 1) === 1]);
  } else if (kind === "flaw") {
    found.push([["flaws"], (flaws) => (i) => flaws[i] !== 0]);
  }
  if (score && (state.from || state.to)) {
    const from = state.from ? Number(state.from) : -Infinity, to = state.to ? Number(state.to) : Infinity;
    found.push([[score], (values) => (i) => values !== null && values[i] >= from && values[i] <= to]);
  }
  return found;
}

/** The pairs that pass, in the order asked for: a Uint32Array, or null for all of them in plan order. */
async function selection(stale) {
  const score = currentScore();
  const order = score ? state.order : "";
  const passing = tests(score);
  if (!passing.length && !order) return null;
  const chosen = new Uint32Array(index.pairs), keys = order ? new Float32Array(index.pairs) : null;
  let found = 0;
  for (let block = 0; block * index.block < index.pairs; block++) {
    const first = block * index.block, rows = Math.min(index.block, index.pairs - first);
    const arrays = passing.map(([names, test]) => Promise.all(names.map((name) =>
      typeof name === "string" ? columnBlock(`${name}/${block}`) : scoreBlock(name, block))).then((columns) => test(...columns)));
    const checks = await Promise.all(arrays);
    const values = order ? await scoreBlock(score, block) : null;
    if (stale()) return null;
    for (let i = 0; i < rows; i++) {
      if (!checks.every((check) => check(i))) continue;
      if (keys) keys[found] = values === null ? NaN : values[i];
      chosen[found++] = first + i;
    }
  }
  if (!order) return chosen.subarray(0, found);
  const highFirst = (score.high_is_good === false) === (order === "worst");
  return sorted(chosen.subarray(0, found), keys.subarray(0, found), highFirst);
}

/** Pairs by their keys, pairs without one last, equal ones in plan order. */
function sorted(pairs, keys, highFirst) {
  // A float's bits, turned so that they sort as whole numbers, above the pair's number: one native sort without callbacks.
  const bits = new Uint32Array(keys.slice().buffer);
  const packed = new BigUint64Array(pairs.length);
  const halves = new Uint32Array(packed.buffer);
  for (let i = 0; i < pairs.length; i++) {
    let key = (bits[i] >>> 31 ? ~bits[i] : bits[i] | 0x80000000) >>> 0;
    if (highFirst) key = ~key >>> 0;
    halves[2 * i] = pairs[i];
    halves[2 * i + 1] = Number.isNaN(keys[i]) ? 0xffffffff : key;
  }
  packed.sort();
  return pairs.map((_, i) => halves[2 * i]);
}

// ---- The page of pairs ----

let shown = null; // what `selection` gave for `shownFor`
let shownFor = null;
let gridFor = null; // likewise the cards
let turn = 0; // a later call makes earlier ones stop

const total = () => (shown ? shown.length : index.pairs);
const pairAt = (position) => (shown ? shown[position] : position);
const pageCount = () => Math.max(1, Math.ceil(total() / PER_PAGE));

async function show() {
  const mine = ++turn;
  const stale = () => mine !== turn;
  const wanted = FIELDS.map((name) => state[name]).join("\n");
  try {
    if (wanted !== shownFor) {
      $("result").textContent = "Loading…";
      const next = await selection(stale);
      if (stale()) return;
      shown = next;
      shownFor = wanted;
    }
    state.page = Math.min(state.page, pageCount());
    const grid = `${wanted}\n${state.page}`;
    if (grid !== gridFor) {
      const first = (state.page - 1) * PER_PAGE;
      const pairs = Array.from({ length: Math.min(PER_PAGE, total() - first) }, (_, i) => pairAt(first + i));
      const cards = await Promise.all(pairs.map(card));
      if (stale()) return;
      const focused = $("grid").contains(document.activeElement);
      $("grid").replaceChildren(...cards);
      if (focused) $("grid").querySelector("button")?.focus();
      pager(state.page, first, pairs.length);
      gridFor = grid;
    }
    if (state.pair !== null) await showLarge(state.pair); else closeLarge();
    document.body.dataset.ready = "yes";
  } catch (error) {
    if (!stale()) $("result").textContent = `${error.message}; the report's folder is incomplete, make it again`;
  }
}

function pager(page, first, rows) {
  $("page").value = page;
  $("page").max = pageCount();
  $("pages").textContent = `of ${count(pageCount())}`;
  const filtered = shown && shown.length < index.pairs;
  const which = rows ? `${count(first + 1)}–${count(first + rows)} of ${count(total())}` : "No pair matches";
  $("result").textContent = filtered && rows ? `${which} that match` : which;
  for (const button of document.querySelectorAll("[data-go]")) {
    button.disabled = ["first", "previous"].includes(button.dataset.go) ? page <= 1 : page >= pageCount();
  }
}

/** The numbers of one pair that its card needs. */
async function facts(pair) {
  const block = Math.floor(pair / index.block), at = pair % index.block;
  const column = async (name) => (await columnBlock(`${name}/${block}`))[at];
  const score = currentScore();
  const [pid, rgb, ir, status, reasons, flaws, packs, scores] = await Promise.all([
    column("pid"), column("rgb"), column("ir"), column("status"), column("reasons"), column("flaws"),
    columnBlock(`packs/${block}`), score ? scoreBlock(score, block) : null]);
  const kinds = index.reasons.filter((_, bit) => reasons >>> bit & 1).map(([name]) => name);
  return { pair, pid: identities[pid], rgb: index.cameras[rgb], ir: index.cameras[ir], status: index.statuses[status][0], kinds,
    flaws, digest: packs[Math.floor(at / index.pack.pairs)], score: scores ? scores[at] : NaN };
}

function thumbnail(fact, scale = 1) {
  const { pairs, across, width, height } = index.pack;
  const pack = Math.floor(fact.pair / pairs), cell = fact.pair % pairs;
  const holder = make("span", { className: "thumb" });
  holder.style.width = `${2 * width * scale}px`;
  holder.style.height = `${height * scale}px`;
  const image = make("img", { alt: describe(fact), decoding: "async", draggable: false });
  image.style.width = `${2 * width * across * scale}px`;
  image.style.left = `${-(cell % across) * 2 * width * scale}px`;
  image.style.top = `${-Math.floor(cell / across) * height * scale}px`;
  image.onerror = () => holder.replaceChildren(make("span", { className: "flaw rgb" }, "no thumbnail"));
  image.src = `thumbs/${Math.floor(pack / 1000)}/${pack}-${fact.digest.toString(16).padStart(8, "0")}.jpg`;
  holder.append(image, ...["rgb", "ir"].flatMap((side) => {
    const flaw = fact.flaws & MISSING[side] ? "missing" : fact.flaws & DAMAGED[side] ? "damaged" : "";
    return flaw ? [make("span", { className: `flaw ${side}` }, flaw)] : [];
  }));
  return holder;
}

const describe = (fact) => `${fact.pid}: RGB of ${fact.rgb} beside infrared of ${fact.ir}`;
const outcome = (fact) => (fact.kinds.length ? `${fact.status}: ${fact.kinds.join(", ")}` : fact.status);

async function card(pair) {
  const fact = await facts(pair);
  const bar = make("span", { className: "made-bar" }, ...["rgb", "ir"].map((side) =>
    make("span", { className: index.made.includes(side) ? "made" : "" })));
  bar.style.width = `${2 * index.pack.width}px`;
  const caption = make("span", { className: "caption" });
  if (currentScore()) {
    caption.append(make("span", { className: "value" }, Number.isNaN(fact.score) ? "no score" : decimal(fact.score)));
  }
  caption.append(make("b", {}, fact.pid), make("span", { className: "line" }, `${fact.rgb} → ${fact.ir}`));
  const out = fact.status !== "done";
  if (out) caption.append(make("span", { className: "out" }, outcome(fact)));
  const button = make("button", { type: "button", className: out ? "card out" : "card", onclick: () => go({ pair }) },
    thumbnail(fact), bar, caption);
  button.dataset.pair = pair;
  return make("li", {}, button);
}

// ---- One pair, large ----

async function showLarge(pair) {
  const mine = turn;
  const [entry, fact] = await Promise.all([record(pair), facts(pair)]);
  if (mine !== turn) return;
  $("large-title").textContent = entry.spec.pair_id;
  $("large-images").replaceChildren(largeImage(entry, fact, "rgb"), largeImage(entry, fact, "ir"));
  const text = (value) => make("span", { className: "code" }, value);
  const scores = new Map(); // by name, of both sides
  for (const [side, name, value] of entry.scores) {
    scores.set(name, [...(scores.get(name) || []), side === "pair" ? `${value}` : `${SIDES[side]} ${value}`]);
  }
  fillTable("record", [], [
    ["pair id", text(entry.spec.pair_id)], ["identity", entry.spec.pid], ["number", `${count(pair + 1)} of ${count(index.pairs)}`],
    ["index", String(entry.spec.index)], ["prompt cameras", `RGB ${entry.spec.rgb}, infrared ${entry.spec.ir}`],
    ["seed", text(entry.spec.seed)], ...(entry.spec.photo === null ? [] : [["photo", text(entry.spec.photo)]]),
    ["status", outcome(fact)], ...(entry.reasons || []).map((reason) => ["reason", reason]),
    ...[...scores].map(([name, values]) => [make("span", { className: "wrap" }, name), values.join(", ")]),
    ...["rgb", "ir"].flatMap((side) => [[`${SIDES[side]} file`, text(`${entry.files[side]}, ${count(entry.sizes[side])} bytes`)],
      [`${SIDES[side]} SHA-256`, text(entry.sha256[side])]]),
    ["engine", text(entry.engine_fingerprint)],
  ]);
  const position = positionOf(pair);
  $("large-previous").disabled = position <= 0;
  $("large-next").disabled = position < 0 || position >= total() - 1;
  if (!$("large").open) $("large").showModal();
}

const positionOf = (pair) => (shown ? shown.indexOf(pair) : pair);

function largeImage(entry, fact, side) {
  const made = index.made.includes(side);
  const name = entry.files[side];
  const figure = make("figure", { className: made ? "made" : "" });
  const caption = make("figcaption", {}, `${SIDES[side]}, ${fact[side]}, ${made ? "generated" : "photo"}`);
  const image = make("img", { alt: `${fact.pid}, ${SIDES[side]} of ${fact[side]}, ${made ? "generated" : "photo"}` });
  const lost = () => image.replaceWith(make("div", { className: "lost", role: "img", ariaLabel: image.alt },
    `${name} is missing, damaged, or no longer at its place beside this report`));
  image.onerror = lost;
  try {
    image.src = `${index.root}/${name.split("/").map(encodeURIComponent).join("/")}`;
  } catch { // a name that is no text
    queueMicrotask(lost);
  }
  figure.append(image, caption);
  return figure;
}

function closeLarge() {
  if (!$("large").open) return;
  const last = $("large-title").dataset.pair;
  $("large").close();
  $("grid").querySelector(`[data-pair="${last}"]`)?.focus();
}

function stepLarge(by) {
  const position = positionOf(state.pair) + by;
  if (position < 0 || position >= total()) return;
  go({ pair: pairAt(position), page: Math.floor(position / PER_PAGE) + 1 });
}

// ---- The rest of the page ----

/** [name, number] of every camera, cam2 before cam10. */
function camerasInOrder() {
  return index.cameras.map((name, at) => [name, at]).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
}

function describeDataset() {
  document.title = `Pairs in ${index.title}`;
  $("title").textContent = document.title;
  const whole = index.pairs === index.planned ? `${count(index.pairs)} pairs` : `${count(index.pairs)} of ${count(index.planned)} planned pairs`;
  const kept = index.statuses.filter(([name, pairs]) => name !== "done" && pairs).map(([name, pairs]) => `${count(pairs)} ${name}`);
  const mode = index.made.includes("rgb") ? "both sides generated" : "RGB photos, infrared generated";
  $("lead").textContent = [`${whole} of ${count(index.identity_count)} identities, ${mode}`, ...kept].join("; ") + ".";
  $("notes").hidden = !index.notes.length;
  $("notes").replaceChildren(...index.notes.map((note) => make("li", {}, note)));
  const option = (value, text) => make("option", { value }, text);
  const cameras = camerasInOrder();
  $("camera").append(...cameras.map(([name]) => option(name, name)));
  $("status").append(...index.statuses.map(([name, pairs]) => option(`status/${name}`, `${name} (${count(pairs)})`)),
    ...index.reasons.map(([name, pairs]) => option(`reason/${name}`, `dropped: ${name} (${count(pairs)})`)),
    ...(index.missing + index.damaged ? [option("flaw/any", "images missing or damaged")] : []));
  $("score").append(...index.scores.map((score) => option(`${score.side}/${score.name}`, `${SIDES[score.side]}: ${score.name}`)));
  fillTable("cameras", ["camera", "pairs", ...index.statuses.map(([name]) => name)], cameras.map(([name, at]) =>
    [link(name, () => go({ camera: name, page: 1 })), index.camera_status[at].reduce((a, b) => a + b), ...index.camera_status[at]]));
  fillTable("statuses", ["status", "pairs"], [...index.statuses.map(([name, pairs]) =>
    [link(name, () => go({ status: `status/${name}`, page: 1 })), pairs]), ...index.reasons.map(([name, pairs]) =>
    [link(`dropped: ${name}`, () => go({ status: `reason/${name}`, page: 1 })), pairs])]);
  const better = (good) => (good === null ? "not said" : good ? "high" : "low");
  $("scores-section").hidden = !index.scores.length;
  fillTable("scores", ["score", "good", "pairs", "mean", "lowest", "highest", "meaning"], index.scores.map((score) =>
    [link(`${SIDES[score.side]}: ${score.name}`, () => go({ score: `${score.side}/${score.name}`, order: "worst", page: 1 })),
      better(score.high_is_good), score.count, { value: score.mean }, { value: score.low }, { value: score.high }, make("span", { className: "words" }, score.text)]));
  const speed = index.throughput;
  fillTable("plan", [], [...index.plan, ...index.engines.map(([name, pairs]) => ["engine", `${name} (${count(pairs)} pairs)`]),
    ...(speed ? [["throughput", `${decimal(speed.mean)} images/s: ${count(speed.images)} images from ${speed.start} to ${speed.end}, ` +
      `pauses included, by ${speed.source}`]] : [])]);
  $("plots-section").hidden = !index.plots.length;
  $("plots").replaceChildren(...index.plots.map((plot) => make("picture", {},
    make("source", { media: "(prefers-color-scheme: dark)", srcset: `plots/${plot.name}-dark.svg` }),
    make("img", { src: `plots/${plot.name}-light.svg`, alt: plot.alt, loading: "lazy", width: 560, height: 290 }))));
  $("problems-section").hidden = index.problems === null;
  if (index.problems !== null) {
    $("health").textContent = index.problems.length ? "" : "Every record has its files, and every file its record.";
    $("problems").replaceChildren(...index.problems.map((problem) => make("li", {}, problem)));
  }
}

const PEOPLE = 50;
let peopleFirst = 0;
async function showPeople() {
  const people = await json("people");
  const end = Math.min(peopleFirst + PEOPLE, identities.length);
  const cameras = camerasInOrder();
  fillTable("identities", ["identity", "pairs", ...index.statuses.map(([name]) => name), ...cameras.map(([name]) => name)],
    Array.from({ length: end - peopleFirst }, (_, i) => peopleFirst + i).map((number) =>
      [link(identities[number], () => { go({ pid: identities[number], page: 1 }); $("pairs").scrollIntoView(); }),
        people.status[number].reduce((a, b) => a + b), ...people.status[number],
        ...cameras.map(([, at]) => people.cameras[number][at])]));
  $("people-range").textContent = `${count(peopleFirst + 1)}–${count(end)} of ${count(identities.length)}`;
  $("people-previous").disabled = peopleFirst === 0;
  $("people-next").disabled = end === identities.length;
}

function fillForm() {
  for (const name of FIELDS) $(name).value = state[name];
  const score = currentScore();
  for (const name of ["from", "to", "order"]) $(name).disabled = !score;
  const unsaid = score && score.high_is_good === null ? " Nobody wrote down whether high is good; worst first shows the lowest first." : "";
  $("meaning").textContent = score ? `${score.name}: ${score.text || "no description"}, ${decimal(score.low)} to ${decimal(score.high)} here.${unsaid}` : "";
  $("meaning").hidden = !score;
}

function listen() {
  for (const name of FIELDS) $(name).addEventListener("change", () => go({ [name]: $(name).value.trim(), page: 1, pair: null }));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("reset").onclick = () => go({ ...Object.fromEntries(FIELDS.map((name) => [name, ""])), page: 1 });
  $("pid").addEventListener("input", () => {
    const typed = $("pid").value.split(",").pop().trim();
    const alike = identities.filter((name) => name.startsWith(typed)).slice(0, 100);
    $("pids").replaceChildren(...(typed ? alike.map((value) => make("option", { value })) : []));
  });
  const turnTo = (page) => go({ page: Math.min(Math.max(1, page), pageCount()) });
  const moves = { first: () => turnTo(1), previous: () => turnTo(state.page - 1), next: () => turnTo(state.page + 1), last: () => turnTo(pageCount()) };
  for (const button of document.querySelectorAll("[data-go]")) button.onclick = moves[button.dataset.go];
  $("page").addEventListener("change", () => turnTo(parseInt($("page").value, 10) || 1));
  $("large-previous").onclick = () => stepLarge(-1);
  $("large-next").onclick = () => stepLarge(1);
  $("large-close").onclick = () => go({ pair: null });
  $("large").addEventListener("cancel", (event) => { event.preventDefault(); go({ pair: null }); });
  $("large").addEventListener("click", (event) => { if (event.target === $("large")) go({ pair: null }); });
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|SELECT)$/.test(event.target.tagName)) return;
    event.preventDefault();
    if ($("large").open) stepLarge(by); else turnTo(state.page + by);
  });
  $("people").addEventListener("toggle", () => { if ($("people").open) showPeople(); });
  $("people-previous").onclick = () => { peopleFirst -= PEOPLE; showPeople(); };
  $("people-next").onclick = () => { peopleFirst += PEOPLE; showPeople(); };
  window.addEventListener("hashchange", follow);
}

function follow() {
  state = readAddress();
  if (state.pair !== null) $("large-title").dataset.pair = state.pair;
  fillForm();
  show();
}

(async () => {
  try {
    [index, identities] = await Promise.all([json("index"), json("identities")]);
  } catch (error) {
    $("lead").textContent = `${error.message}; the report's folder is incomplete, make it again`;
    return;
  }
  describeDataset();
  listen();
  follow();
})();
