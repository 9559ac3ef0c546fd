// The explorer of matched features. Everything it shows comes from packs inside this page; nothing is ever requested.
// Text of the corpus enters the page as text nodes only.
"use strict";
(() => {
  const { MiniSearch, Virtualizer, elementScroll, observeElementOffset, observeElementRect } = libraries;
  const { quadtree, select, zoom, zoomIdentity } = libraries;
  const ROW_HEIGHT = 44;
  const UNDEFINED = -32768;
  const FIXED_STEP = 1e-4;
  const STARTS = 1;
  const ENDS = 2;
  const SHORTEST_PREFIX = 2;
  const byId = (id) => document.getElementById(id);
  const index = JSON.parse(byId("x-index").textContent);

  // ---- packs ------------------------------------------------------------------------------------------------------

  const TYPES = { uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
    float32: Float32Array };
  const unpacked = new Map();

  function unpack(name) {
    if (!unpacked.has(name)) unpacked.set(name, takeApart(byId(`x-pack-${name}`).textContent.trim()));
    return unpacked.get(name);
  }

  async function takeApart(base64) {
    const bytes = fromBase64(base64);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const buffer = await new Response(stream).arrayBuffer();
    const headLength = new DataView(buffer).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, headLength)));
    const start = 4 + headLength;
    for (const [array, [type, offset, length]] of Object.entries(head.arrays)) {
      head[array] = new TYPES[type](buffer, start + offset, length);
    }
    return head;
  }

  function fromBase64(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const characters = atob(base64);
    const bytes = new Uint8Array(characters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
    return bytes;
  }

  // ---- text -------------------------------------------------------------------------------------------------------

  class Passages {
    constructor(pack) {
      Object.assign(this, pack);
      this.text = new TextDecoder().decode(pack.text);
      this.start = new Uint32Array(pack.gap.length + 1);
      for (let i = 0; i < pack.gap.length; i++) this.start[i + 1] = this.start[i] + pack.gap[i] + pack.length[i];
    }

    own(i) {
      return this.text.slice(this.start[i] + this.gap[i], this.start[i + 1]);
    }

    before(i) {
      return this.text.slice(this.start[i], this.start[i] + this.gap[i]);
    }

    // The token as people read it, and the whole word that it is a piece of.
    token(i) {
      return this.own(i).trim() || "␣";
    }

    wordOf(i) {
      return this.word[i] ? this.words[this.word[i] - 1] : this.token(i);
    }
  }

  // ---- one pair of sites ------------------------------------------------------------------------------------------

  class Site {
    constructor(pack, text, side, name, page) {
      Object.assign(this, pack);
      Object.assign(this, { text, side, name, page });
      this.listed = new Map();
    }

    contexts(feature) {
      const from = feature * this.width;
      return Array.from({ length: this.width }, (_, i) => from + i).filter((at) => this.row[at] >= 0);
    }

    tokens(feature) {
      if (!this.listed.has(feature)) {
        this.listed.set(feature, [...new Set(this.contexts(feature).map((at) => this.text.token(this.row[at])))]);
      }
      return this.listed.get(feature);
    }

    words(feature) {
      return this.contexts(feature).map((at) => this.text.wordOf(this.row[at]));
    }

    label(feature) {
      return `${this.side.toUpperCase()} ${this.feature[feature]}`;
    }
  }

  class PairSet {
    constructor(entry, pack, a, b) {
      Object.assign(this, pack);
      this.entry = entry;
      this.sites = { a, b };
      this.n = this.r.length;
      // a pair that holds on one half by accident does not on the other; what has no r held out comes last
      this.both = this.r.map((r, i) => (!entry.heldout ? r : Number.isNaN(this.heldout[i]) ? -1 : Math.min(r, this.heldout[i])));
      this.partners = { a: partners(pack.a), b: partners(pack.b) };
      this.search = null;
      this.orders = {};
      this.n_one_word = this.one_word.reduce((sum, one) => sum + one, 0);
    }

    features(pair) {
      return { a: this.a[pair], b: this.b[pair] };
    }

    conceptsOf(pair) {
      if (!this.concepts.length) return [];
      const from = this.concept_start[pair];
      return Array.from(this.concept_id.subarray(from, this.concept_start[pair + 1]), (id) => this.concepts[id]);
    }

    // The words that pairs fire on, and their concepts, each with its pairs; built once, in slices that leave the page
    // alive. Words are found by MiniSearch, so that a query costs what its words do and not what their pairs do.
    index() {
      this.search ??= this.makeIndex();
      return this.search;
    }

    async makeIndex() {
      const pairsOf = new Map();
      for (let pair = 0; pair < this.n; pair++) {
        for (const word of this.wordsOf(pair)) {
          if (pairsOf.has(word)) pairsOf.get(word).push(pair);
          else pairsOf.set(word, [pair]);
        }
        if (pair % 2000 === 1999) await new Promise((resolve) => setTimeout(resolve));
      }
      const words = [...pairsOf.keys()];
      const search = new MiniSearch({
        fields: ["word"],
        tokenize: (text) => text.split(/\s+/u).filter(Boolean),
        searchOptions: { prefix: (term) => term.length >= SHORTEST_PREFIX },
      });
      search.addAll(words.map((word, id) => ({ id, word })));
      return { search, words, pairsOf };
    }

    wordsOf(pair) {
      const { a, b } = this.features(pair);
      const found = [...this.sites.a.words(a), ...this.sites.a.tokens(a), ...this.sites.b.words(b),
        ...this.sites.b.tokens(b), ...this.conceptsOf(pair)];
      return new Set(found.map((word) => word.toLowerCase()));
    }

    // Pairs that a query means, or null for all: a feature's id (with or without its side), else every word of it among
    // the words that the pair fires on and its concepts.
    async find(query) {
      const text = query.trim().toLowerCase();
      if (!text) return null;
      const found = await this.withWords(text.split(/\s+/u));
      const id = /^([ab])?\s*(\d+)$/.exec(text);
      for (const side of id ? (id[1] ?? "ab") : "") {
        this[side].forEach((feature, pair) => { if (this.sites[side].feature[feature] === Number(id[2])) found[pair] = 1; });
      }
      return found;
    }

    async withWords(terms) {
      const { search, words, pairsOf } = await this.index();
      let found = new Uint8Array(this.n).fill(1);
      for (const term of terms) {
        const some = new Uint8Array(this.n);
        for (const { id } of search.search(term)) for (const pair of pairsOf.get(words[id])) some[pair] = found[pair];
        found = some;
      }
      return found;
    }

    // The pair of two features by their ids; -1 where they were not matched.
    withIds(a, b) {
      return this.a.findIndex((feature, pair) => this.sites.a.feature[feature] === a && this.sites.b.feature[this.b[pair]] === b);
    }

    // All pairs in the order of one of the SORTS; what has no figure comes last.
    order(name) {
      const [, values, direction] = SORTS[name];
      if (!this.orders[name]) {
        const keys = Float64Array.from(values(this), (value) => (Number.isNaN(value) ? Infinity : direction * value));
        this.orders[name] = Uint32Array.from(keys.keys()).sort((x, y) => keys[x] - keys[y] || x - y);
      }
      return this.orders[name];
    }
  }

  function partners(features) {
    const first = new Map();
    features.forEach((feature, pair) => { if (!first.has(feature)) first.set(feature, pair); });
    return first;
  }

  async function openPairSet(entry) {
    const names = ["text", entry.packs.a, entry.packs.b, entry.pack];
    const [text, a, b, pairs] = await Promise.all(names.map(unpack));
    openPairSet.text ??= new Passages(text);
    const sites = Object.fromEntries([["a", a], ["b", b]].map(([side, pack]) =>
      [side, new Site(pack, openPairSet.text, side, entry.sites[side], entry.pages[side])]));
    return new PairSet(entry, pairs, sites.a, sites.b);
  }

  // ---- elements ---------------------------------------------------------------------------------------------------

  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const MINUS = "−";
  const number = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", MINUS) : "–");
  const count = (value) => value.toLocaleString("en");
  const fixed = (value) => (value === UNDEFINED ? NaN : value * FIXED_STEP);
  const words = (tokens) => el("span", { class: "x-words" }, ...tokens.slice(0, 5).map((token) => el("span", {}, token)));

  // ---- the list ---------------------------------------------------------------------------------------------------

  const DEFAULT_SORT = "both";
  const SORTS = {
    both: ["Lower of the two r", (set) => set.both, -1],
    r: ["r (selection half)", (set) => set.r, -1],
    heldout: ["r (held-out half)", (set) => set.heldout, -1],
    drop: ["Largest drop, selection → held out", (set) => set.r.map((r, i) => r - set.heldout[i]), -1],
    a: ["Feature of A", (set) => Float32Array.from(set.a, (f) => set.sites.a.feature[f]), 1],
    b: ["Feature of B", (set) => Float32Array.from(set.b, (f) => set.sites.b.feature[f]), 1],
  };

  const state = { set: null, shown: [], selected: -1, turn: 0 };
  const list = byId("x-list");
  const rows = byId("x-rows");

  const virtualizer = new Virtualizer({
    count: 0,
    getScrollElement: () => list,
    estimateSize: () => ROW_HEIGHT,
    overscan: 8,
    scrollToFn: elementScroll,
    observeElementRect,
    observeElementOffset,
    onChange: drawRows,
  });

  function drawRows() {
    const height = virtualizer.getTotalSize();
    rows.style.height = `${height}px`;
    list.style.maxHeight = `${Math.max(height, ROW_HEIGHT)}px`; // few pairs leave no empty box above the detail
    const items = virtualizer.getVirtualItems();
    rows.replaceChildren(...items.map((item) => pairRow(item)));
    if (!state.shown.length) rows.replaceChildren(el("p", { class: "x-none" }, "No pairs match these filters."));
    const active = state.shown.indexOf(state.selected);
    const drawn = items.some((item) => item.index === active);
    if (drawn) list.setAttribute("aria-activedescendant", `x-row-${active}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function pairRow(item) {
    const { set } = state;
    const pair = state.shown[item.index];
    const side = (name) => {
      const feature = set[name][pair];
      const site = set.sites[name];
      return el("span", { class: `x-side side-${name}` }, el("span", { class: "id num" }, site.label(feature)), words(site.tokens(feature)));
    };
    const row = el("div", {
      role: "option", id: `x-row-${item.index}`, class: "x-row", "aria-selected": String(pair === state.selected),
      "aria-posinset": item.index + 1, "aria-setsize": state.shown.length,
    }, side("a"), side("b"), el("b", { class: "num" }, number(set.r[pair])), el("span", { class: "num" }, number(set.heldout[pair])));
    row.style.transform = `translateY(${item.start}px)`;
    row.dataset.at = item.index;
    return row;
  }

  async function refresh() {
    const turn = ++state.turn;
    const { set } = state;
    const found = await set.find(byId("x-search").value);
    if (turn !== state.turn) return;
    const least = byId("x-min").value === "" ? -Infinity : Number(byId("x-min").value);
    const one_word = byId("x-easy").checked ? null : set.one_word;
    const concept = byId("x-concept").value;
    const kept = [];
    for (const pair of set.order(byId("x-sort").value)) {
      if ((!found || found[pair]) && !(set.both[pair] < least) && !(one_word && one_word[pair]) &&
          (!concept || set.conceptsOf(pair).includes(concept))) kept.push(pair);
    }
    state.shown = kept;
    byId("x-count").textContent = `${count(kept.length)} of ${count(set.n)} pairs`;
    virtualizer.setOptions({ ...virtualizer.options, count: kept.length });
    virtualizer._willUpdate();
    virtualizer.scrollToOffset(0);
    if (!kept.includes(state.selected)) choose(kept.length ? 0 : -1, { scroll: false });
    drawRows();
    drawMaps();
    byId("x-app").dataset.ready = String(turn);
  }

  function choose(at, { scroll = true } = {}) {
    state.selected = at < 0 ? -1 : state.shown[at];
    if (scroll && at >= 0) virtualizer.scrollToIndex(at, { align: "auto" });
    drawRows();
    drawDetail();
    drawMaps();
  }

  // Show a pair, without the filters where they hide it.
  async function goTo(pair) {
    if (!state.shown.includes(pair)) {
      for (const id of ["x-search", "x-min", "x-concept"]) byId(id).value = "";
      byId("x-easy").checked ||= Boolean(state.set.one_word[pair]);
      await refresh();
    }
    choose(state.shown.indexOf(pair));
  }

  // ---- the address ------------------------------------------------------------------------------------------------

  // What is shown is in the address, after "#": a link shows it again, and "back" returns to what was shown before.
  const FIELDS = { q: "x-search", sort: "x-sort", min: "x-min", concept: "x-concept" };
  const isState = (hash) => hash === "" || hash.includes("=");

  function address() {
    const { set } = state;
    const parts = new URLSearchParams(set.entry.sites);
    for (const [name, id] of Object.entries(FIELDS)) {
      if (byId(id).value && byId(id).value !== DEFAULT_SORT) parts.set(name, byId(id).value);
    }
    if (byId("x-easy").checked) parts.set("words", "1");
    if (state.selected >= 0) parts.set("pair", ["a", "b"].map((side) => set.sites[side].feature[set[side][state.selected]]).join("-"));
    return `#${parts}`;
  }

  // Typing, or going through the list, is one step back, however many keys it takes.
  function note(step) {
    const again = step !== "step" && step === state.step;
    state.step = step;
    byId("x-wait").textContent = "";
    if (address() !== location.hash) history[again ? "replaceState" : "pushState"](null, "", address());
  }

  // Show what an address says; what it says nothing of is as it is when the page opens.
  async function follow(hash) {
    const parts = new URLSearchParams(hash.slice(1));
    const at = index.site_pairs.findIndex(({ sites }) => sites.a === parts.get("a") && sites.b === parts.get("b"));
    if (at < 0 && parts.has("a")) throw new Error(`This report has no pair of sites ${parts.get("a")} – ${parts.get("b")}`);
    byId("x-sites").value = Math.max(at, 0);
    await openSites(parts);
    if (parts.has("pair")) {
      const pair = state.set.withIds(...parts.get("pair").split("-").map(Number));
      if (pair < 0) throw new Error(`These sites have no pair ${parts.get("pair")}`);
      await goTo(pair);
    }
  }

  function fill(parts) {
    if (!Number.isFinite(Number(parts.get("min")))) parts.delete("min");
    for (const [name, id] of Object.entries(FIELDS)) byId(id).value = parts.get(name) ?? (name === "sort" ? DEFAULT_SORT : "");
    if (byId("x-sort").selectedIndex < 0) byId("x-sort").value = DEFAULT_SORT;
    if (byId("x-concept").selectedIndex < 0) byId("x-concept").value = "";
    byId("x-easy").checked = parts.has("words");
  }

  async function changed() {
    const { hash } = location;
    if (!isState(hash) || (state.set && hash === address())) return;
    state.step = null;
    await follow(hash).then(() => { byId("x-wait").textContent = ""; }, (error) => { byId("x-wait").textContent = error.message; });
    const { top, bottom } = byId("x-app").getBoundingClientRect();
    if (hash && (bottom < 0 || top > innerHeight / 2)) {
      byId("explorer").scrollIntoView({ block: "start" });
      list.focus({ preventScroll: true });
    }
  }

  async function copyLink() {
    note("step");
    const done = byId("x-done");
    const after = location.protocol === "file:" ? "Copied. Send the file as well: the link finds the pair in it." : "Copied.";
    try {
      await navigator.clipboard.writeText(location.href);
      done.textContent = after;
    } catch {
      done.replaceChildren(el("input", { readonly: true, value: location.href, "aria-label": "Link to copy" }));
      done.firstChild.select();
    }
  }

  // The pairs in the list, in its order, with the columns of pairs.csv.
  function table() {
    const { set } = state;
    const quoted = (text) => `"${text.replaceAll('"', '""')}"`;
    const sides = ["a", "b"];
    const both = (of) => sides.map((side) => of(set.sites[side], side));
    const lines = state.shown.map((pair) => [
      ...both((site) => quoted(site.name)), ...both((site, side) => site.feature[set[side][pair]]),
      ...[set.r[pair], set.heldout[pair]].map((r) => (Number.isNaN(r) ? "" : Number(r.toPrecision(7)))),
      ...both((site, side) => site.n_active[set[side][pair]]), set.one_word[pair] ? "True" : "False",
      ...both((site, side) => quoted(JSON.stringify(site.tokens(set[side][pair])))),
    ].join(","));
    const columns = ["site", "feature", "n_active", "tokens"].map((name) => sides.map((side) => `${name}_${side}`));
    const head = [...columns[0], ...columns[1], "r", "r_heldout", ...columns[2], "one_word", ...columns[3]];
    return `${[head.join(","), ...lines].join("\n")}\n`;
  }

  function exportPairs() {
    const url = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    const { sites } = state.set.entry;
    el("a", { href: url, download: `pairs-${sites.a}-${sites.b}.csv`.replace(/[^\w.-]+/g, "-") }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    byId("x-done").textContent = `${count(state.shown.length)} pairs in the file`;
  }

  // ---- one pair ---------------------------------------------------------------------------------------------------

  function drawDetail() {
    const detail = byId("x-detail");
    const pair = state.selected;
    if (pair < 0) return detail.replaceChildren();
    const { set } = state;
    const features = set.features(pair);
    const facts = [["r (selection half)", number(set.r[pair], 3)], [set.entry.heldout_in_choice ? "r (held-out half, used in the selection)" : "r (held-out half)", number(set.heldout[pair], 3)]];
    const concepts = set.conceptsOf(pair);
    if (concepts.length) facts.push(["concepts", concepts.join(", ").replaceAll("_", " ")]);
    if (set.one_word[pair]) facts.push(["one-word pair", "yes"]);
    const title = el("h3", { id: "x-title", tabindex: "-1" }, `${set.sites.a.label(features.a)} and ${set.sites.b.label(features.b)}`);
    detail.replaceChildren(title,
      el("dl", { class: "x-facts" }, ...facts.map(([name, fact]) => el("div", {}, el("dt", {}, name), el("dd", { class: "num" }, fact)))),
      el("div", { class: "x-sides" }, sideView("a", pair), sideView("b", pair)), elsewhere(pair) ?? "");
  }

  // The partners of both features at the other sites; looked up when asked for, since each pair of sites is a pack.
  function elsewhere(pair) {
    const { set } = state;
    const others = index.site_pairs.filter((entry) => entry !== set.entry && sharedSide(entry, set.entry));
    if (!others.length) return null;
    const body = el("tbody");
    const heads = ["Feature", "At", "Partner", "r", "held out"].map((name, i) => el("th", { scope: "col", class: i > 2 ? "num" : null }, name));
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body);
    const shown = el("details", { class: "more x-elsewhere", open: state.elsewhere }, el("summary", {}, "Partners at other sites"),
      el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Partners at other sites" }, table));
    const fill = async () => {
      state.elsewhere = shown.open;
      if (!shown.open || body.children.length) return;
      body.append(el("tr", {}, el("td", { colspan: 5 }, "Looking …")));
      const rows = [];
      for (const entry of others) rows.push(partnerAt(entry, set, pair, await openPairSet(entry)));
      body.replaceChildren(...rows);
    };
    shown.addEventListener("toggle", fill);
    return shown;
  }

  const sharedSide = (one, other) => ["a", "b"].find((side) => one.sites[side] === other.sites[side]);

  function partnerAt(entry, set, pair, there) {
    const side = sharedSide(entry, set.entry);
    const other = side === "a" ? "b" : "a";
    const id = set.sites[side].feature[set[side][pair]];
    const at = there.partners[side].get(there.sites[side].feature.indexOf(id));
    const cells = [el("th", { scope: "row", class: `side-${side}` }, el("span", { class: "id num" }, `${side.toUpperCase()} ${id}`)), el("td", { class: "name" }, entry.sites[other])];
    if (at === undefined) return el("tr", {}, ...cells, el("td", { colspan: 3 }, "not matched"));
    const partner = there.sites[other].feature[there[other][at]];
    const ids = side === "a" ? [id, partner] : [partner, id];
    const link = el("a", { href: `#${new URLSearchParams({ ...entry.sites, ...(there.one_word[at] ? { words: "1" } : {}), pair: ids.join("-") })}` }, `${other.toUpperCase()} ${partner}`);
    return el("tr", {}, ...cells, el("td", {}, link, words(there.sites[other].tokens(there[other][at]))),
      el("td", { class: "num" }, number(there.r[at])), el("td", { class: "num" }, number(there.heldout[at])));
  }

  function sideView(side, pair) {
    const { set } = state;
    const other = side === "a" ? "b" : "a";
    const site = set.sites[side];
    const feature = set[side][pair];
    const shared = new Set(set.sites[other].contexts(set[other][pair]).map((at) => set.sites[other].row[at]));
    const heading = el("h4", {}, el("span", { class: "badge" }, side.toUpperCase()), ` feature ${site.feature[feature]}`);
    const page = site.page && el("a", { href: `${site.page}/${site.feature[feature]}`, rel: "noreferrer noopener", target: "_blank" }, "on Neuronpedia");
    const share = site.n_active[feature] / site.rows;
    return el("div", { class: `side-${side}` }, heading,
      el("p", { class: "small" }, `${site.name}; active on ${count(site.n_active[feature])} of ${count(site.rows)} rows (${(100 * share).toPrecision(2)} %)`, page ? "; " : "", page || null),
      el("ol", { class: "contexts" }, ...site.contexts(feature).map((at) => contextView(site, at, shared))),
      histogram(site, feature),
      neighbours(side, pair));
  }

  function contextView(site, at, shared) {
    const peak = site.row[at];
    const [first, last] = [peak - site.before[at], peak + site.after[at]];
    const { text } = site;
    const shown = el("span", { class: "text", dir: "auto" });
    if (!(text.flags[first] & STARTS)) shown.append("… ");
    for (let row = first; row <= last; row++) {
      const level = site.level[at * (2 * index.reach + 1) + index.reach + row - peak];
      if (row > first) shown.append(text.before(row));
      shown.append(level || row === peak ? el("mark", { class: `l${level}${row === peak ? " p" : ""}` }, text.own(row)) : text.own(row));
    }
    if (!(text.flags[last] & ENDS)) shown.append(" …");
    if (shared.has(peak)) shown.append(" ", el("span", { class: "also", role: "img", "aria-label": "also among the partner’s top contexts" }, "⇄"));
    const value = el("span", { class: "value num", title: `document ${text.document[peak]}` }, number(site.value[at]));
    return el("li", {}, value, shown);
  }

  function histogram(site, feature) {
    if (!site.n_bars) return null;
    const bars = Array.from(site.bars.subarray(feature * site.n_bars, (feature + 1) * site.n_bars));
    const highest = Math.log1p(Math.max(...bars, 1));
    const width = 100 / bars.length;
    const label = `Histogram of ${count(bars.reduce((sum, bar) => sum + bar, 0))} activations above 0, up to ${number(site.largest[feature])}, on a logarithmic scale`;
    const drawn = svg("svg", { class: "x-bars", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label },
      svg("line", { x1: 0, x2: 100, y1: 29.7, y2: 29.7, "stroke-width": 0.6 }),
      ...bars.map((bar, i) => {
        const height = (29 * Math.log1p(bar)) / highest;
        return svg("rect", { x: i * width + 0.3, width: width - 0.6, y: 29.5 - height, height });
      }));
    return el("div", {}, drawn, el("p", { class: "small" }, `Activations from 0 to ${number(site.largest[feature])}; rows on a logarithmic scale`));
  }

  // The partners that a feature could have had: those it correlates with most, and what became of them.
  function neighbours(side, pair) {
    const { set } = state;
    const other = side === "a" ? "b" : "a";
    const from = pair * set.neighbours;
    const found = Array.from(set[`near_${other}`].subarray(from, from + set.neighbours));
    const body = found.map((feature, i) => feature < 0 ? null : neighbourRow(other, feature, pair,
      fixed(set[`near_r_${other}`][from + i]), fixed(set[`near_heldout_${other}`][from + i])));
    const head = ["Feature", "r", "held out", "Fires on"].map((name, i) => el("th", { scope: "col", class: i === 1 || i === 2 ? "num" : null }, name));
    return el("table", { class: `x-near side-${other}` },
      el("caption", {}, `What ${set.sites[side].label(set[side][pair])} correlates with most in ${other.toUpperCase()}`),
      el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body));
  }

  function neighbourRow(side, feature, pair, r, heldout) {
    const { set } = state;
    const site = set.sites[side];
    const chosen = set[side][pair] === feature;
    const other = side === "a" ? "b" : "a";
    const partner = set.partners[side].get(feature);
    let fate = "not matched";
    if (chosen) fate = "this pair";
    else if (partner !== undefined) {
      const label = `${set.sites[other].label(set[other][partner])}, r ${number(set.r[partner])}`;
      fate = el("button", { type: "button", class: "x-jump" }, `paired with ${label}`);
      fate.addEventListener("click", () => goTo(partner).then(() => { note("step"); byId("x-title").focus(); }));
    }
    return el("tr", { class: chosen ? "x-chosen" : null }, el("th", { scope: "row", class: "num" }, site.label(feature)),
      el("td", { class: "num" }, number(r)), el("td", { class: "num" }, number(heldout)),
      el("td", {}, words(site.tokens(feature)), el("span", { class: "x-fate" }, fate)));
  }

  // ---- the maps ---------------------------------------------------------------------------------------------------

  const maps = { transform: zoomIdentity, a: null, b: null };

  function openMaps() {
    const { set } = state;
    const farthest = (places) => places.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const reach = Math.max(farthest(set.map_a), farthest(set.map_b)) || 1;
    const share = (value) => (value === null ? "" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} % of variance`);
    for (const side of ["a", "b"]) {
      maps[side] = { places: set[`map_${side}`], reach: reach * 1.05, tree: null, layers: new Map() };
      byId(`x-map-title-${side}`).textContent = `${set.entry.sites[side]}, ${share(set.explained[side])}`;
      byId(`x-map-${side}`).setAttribute("aria-label", `Map of the decoder rows of ${count(set.n)} matched features of ${set.entry.sites[side]}; the list has the same pairs`);
    }
    maps.transform = zoomIdentity;
    byId("x-map-note").textContent = "The decoder rows of all matched features, each side on its own first two principal components; B is rotated to align partners as closely as possible. Most of the variance lies outside these planes: they are useful for spotting groups, not as evidence. Marked: the pairs in the list. Hover to see the partner of a feature, click to open the pair, drag or Ctrl + wheel to zoom.";
  }

  const scale = (side, canvas) => Math.min(canvas.width, canvas.height) / 2 / maps[side].reach;

  function place(side, pair, canvas) {
    const { k, x, y } = maps.transform;
    const size = scale(side, canvas);
    const [left, top] = [maps[side].places[2 * pair], maps[side].places[2 * pair + 1]];
    return [(canvas.width / 2 + left * size) * k + x * devicePixelRatio, (canvas.height / 2 - top * size) * k + y * devicePixelRatio];
  }

  let drawing = 0;
  function drawMaps() {
    if (!drawing) drawing = requestAnimationFrame(() => { drawing = 0; for (const side of ["a", "b"]) if (maps[side]) drawMap(side); });
  }

  function drawMap(side) {
    const canvas = byId(`x-map-${side}`);
    const [width, height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio].map(Math.round);
    if (!width || !height) return; // on paper there are no maps
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext("2d");
    const dot = Math.max(1.5, Math.min(4, 260 / Math.sqrt(state.set.n))) * devicePixelRatio;
    pen.clearRect(0, 0, width, height);
    const all = state.shown.length === state.set.n;
    const own = style.getPropertyValue(`--${side}`);
    pen.drawImage(backdrop(side, canvas, all ? own : style.getPropertyValue("--null"), all ? 0.5 : 0.35, dot), 0, 0);
    if (!all) drawDots(pen, side, canvas, state.shown, own, 0.8, dot * 1.4);
    ring(pen, side, maps.hover, canvas, style.getPropertyValue("--muted"));
    ring(pen, side, state.selected, canvas, style.getPropertyValue("--ink"));
  }

  function drawDots(pen, side, canvas, pairs, colour, alpha, size) {
    pen.globalAlpha = alpha;
    pen.fillStyle = colour;
    for (const pair of pairs) {
      const [x, y] = place(side, pair, canvas);
      if (x > -size && y > -size && x < canvas.width + size && y < canvas.height + size) pen.fillRect(x - size / 2, y - size / 2, size, size);
    }
    pen.globalAlpha = 1;
  }

  // All pairs, drawn once and kept until the map moves: a search or a pointer then draws only what is new.
  function backdrop(side, canvas, colour, alpha, dot) {
    const { layers } = maps[side];
    const { k, x, y } = maps.transform;
    const key = [colour, alpha, dot, canvas.width, canvas.height, k, x, y].join();
    if (!layers.has(key)) {
      if (layers.size > 1) layers.clear();
      const layer = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
      drawDots(layer.getContext("2d"), side, canvas, state.set.r.keys(), colour, alpha, dot);
      layers.set(key, layer);
    }
    return layers.get(key);
  }

  function ring(pen, side, pair, canvas, colour) {
    if (pair === undefined || pair < 0) return;
    const [x, y] = place(side, pair, canvas);
    pen.strokeStyle = colour;
    pen.lineWidth = 2.5 * devicePixelRatio;
    pen.beginPath();
    pen.arc(x, y, 7 * devicePixelRatio, 0, 2 * Math.PI);
    pen.stroke();
  }

  function nearest(side, event) {
    const canvas = event.currentTarget;
    const map = maps[side];
    const places = map.places;
    map.tree ??= quadtree().x((pair) => places[2 * pair]).y((pair) => places[2 * pair + 1]).addAll(Array.from({ length: state.set.n }, (_, pair) => pair));
    const { k, x, y } = maps.transform;
    const size = scale(side, canvas);
    const box = canvas.getBoundingClientRect();
    const left = (((event.clientX - box.left - x) * devicePixelRatio) / k - canvas.width / 2) / size;
    const top = (canvas.height / 2 - ((event.clientY - box.top - y) * devicePixelRatio) / k) / size;
    return map.tree.find(left, top, (12 * devicePixelRatio) / k / size) ?? -1;
  }

  function hover(pair) {
    maps.hover = pair;
    const { set } = state;
    const line = (side) => `${set.sites[side].label(set[side][pair])} ${set.sites[side].tokens(set[side][pair]).slice(0, 4).join(" · ")}`;
    byId("x-hover").textContent = pair < 0 ? " " : `${line("a")}  –  ${line("b")}  (r ${number(set.r[pair])}, held out ${number(set.heldout[pair])})`;
    drawMaps();
  }

  const zooming = zoom().scaleExtent([0.5, 60])
    .filter((event) => (event.type === "wheel" ? event.ctrlKey || event.metaKey : !event.touches || event.touches.length > 1) && !event.button)
    .on("zoom", (event) => {
      maps.transform = event.transform;
      for (const side of ["a", "b"]) byId(`x-map-${side}`).__zoom = event.transform;
      drawMaps();
    });

  function listenToMaps() {
    for (const side of ["a", "b"]) {
      const canvas = byId(`x-map-${side}`);
      select(canvas).call(zooming).on("dblclick.zoom", null);
      canvas.addEventListener("pointermove", (event) => hover(nearest(side, event)));
      canvas.addEventListener("pointerleave", () => hover(-1));
      canvas.addEventListener("click", (event) => {
        const pair = nearest(side, event);
        if (pair >= 0) goTo(pair).then(() => note("step"));
      });
    }
    const steps = { "x-in": (map) => zooming.scaleBy(map, 1.6), "x-out": (map) => zooming.scaleBy(map, 1 / 1.6), "x-reset": (map) => zooming.transform(map, zoomIdentity) };
    for (const [id, step] of Object.entries(steps)) byId(id).addEventListener("click", () => step(select(byId("x-map-a"))));
    new ResizeObserver(drawMaps).observe(byId("x-map-a"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMaps);
  }

  // ---- keyboard and mouse -----------------------------------------------------------------------------------------

  function moved(event) {
    const at = state.shown.indexOf(state.selected);
    const page = Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
    const last = state.shown.length - 1;
    return { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: last }[event.key];
  }

  function listen() {
    list.addEventListener("keydown", (event) => {
      if (!state.shown.length) return;
      const to = moved(event);
      if (to !== undefined) {
        event.preventDefault();
        choose(Math.min(Math.max(to, 0), state.shown.length - 1));
        note("list");
      } else if (event.key === "Enter") {
        event.preventDefault();
        byId("x-title")?.focus();
      }
    });
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".x-row");
      if (!row) return;
      choose(Number(row.dataset.at), { scroll: false });
      note("step");
      if (matchMedia("(max-width: 60rem)").matches) byId("x-detail").scrollIntoView({ block: "start" });
    });
    byId("x-detail").addEventListener("keydown", (event) => { if (event.key === "Escape") list.focus(); });
    byId("x-search").addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        list.focus();
      }
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
      event.preventDefault();
      byId("x-search").focus();
    });
    for (const id of ["x-search", "x-min"]) byId(id).addEventListener("input", () => refresh().then(() => note(id)));
    for (const id of ["x-sort", "x-easy", "x-concept"]) byId(id).addEventListener("change", () => refresh().then(() => note("step")));
    byId("x-sites").addEventListener("change", () => openSites().then(() => note("step")));
    byId("x-link").addEventListener("click", copyLink);
    byId("x-csv").addEventListener("click", exportPairs);
    addEventListener("hashchange", changed);
  }

  // ---- start ------------------------------------------------------------------------------------------------------

  // Show the chosen pair of sites, with the fields as an address says, or as they are.
  async function openSites(parts) {
    const entry = index.site_pairs[Number(byId("x-sites").value)];
    if (state.set?.entry !== entry) {
      const set = await openPairSet(entry);
      if (entry !== index.site_pairs[Number(byId("x-sites").value)]) return; // another was chosen meanwhile
      state.set = set;
      state.selected = -1;
      byId("x-concept").replaceChildren(el("option", { value: "" }, "any"), ...set.concepts.map((name) => el("option", { value: name }, name.replaceAll("_", " "))));
      byId("x-concept").parentElement.hidden = !set.concepts.length;
      byId("x-easy").parentElement.hidden = !set.n_one_word;
      byId("x-easy-text").textContent = `Show ${count(set.n_one_word)} one-word pair${set.n_one_word === 1 ? "" : "s"}`;
      openMaps();
    }
    if (parts) {
      fill(parts);
      state.selected = -1;
    }
    await refresh();
    state.set.index().then(() => { byId("x-app").dataset.indexed = "true"; });
  }

  async function start() {
    byId("x-wait").textContent = "Opening …";
    byId("x-sites").replaceChildren(...index.site_pairs.map((entry, i) => el("option", { value: i }, `${entry.sites.a} – ${entry.sites.b} (${count(entry.pairs)})`)));
    byId("x-sort").replaceChildren(...Object.entries(SORTS).map(([name, [label]]) => el("option", { value: name }, label)));
    byId("x-app").hidden = false;
    virtualizer._didMount();
    listen();
    listenToMaps();
    const linked = location.hash.includes("=");
    if (linked) await changed();
    if (!state.set) await openSites(); // no link, or one that leads nowhere, which is said
    if (!linked) byId("x-wait").textContent = "";
  }

  start().catch((error) => {
    byId("x-wait").textContent = `The explorer could not be opened in this browser (${error.message}). pairs.csv has the same pairs.`;
    console.error(error);
  });
})();
