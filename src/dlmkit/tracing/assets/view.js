
// Drawing and control. Text that a model wrote goes into the page by textContent and attributes alone.
const $ = (selector) => document.querySelector(selector);
const DATA = JSON.parse($("#trace").textContent);
const players = DATA.samples.map((sample) => new Player(sample));
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const MOST_BREAKS = 3;
const MOST_FADING = 128; // steps of a text whose tokens fade in
const MOST_BEYOND = 64; // tokens beyond the first mask of a text that is filled from left to right
const SECONDS = 8; // that all steps take at speed 1
const options = { color: "step", view: "text" };
let player, current = 0, spans = [], chosen = null, pinned = false, playing = 0, progress = 0;

function el(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties ?? {})) key in element ? (element[key] = value) : element.setAttribute(key, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const textOf = (token) => DATA.tokens[token][1];
const percent = (p) => (p === null ? "not known" : p >= 0.0995 ? `${Math.round(p * 100)}%` : p >= 0.00095 ? `${(p * 100).toFixed(1)}%` : "< 0.1%");

// ---- the text

const list = el("div", { className: "tokens" });
list.setAttribute("role", "listbox");
list.setAttribute("aria-label", "tokens");
$(".text").append(list);

function texts(tokenAt) {
  const own = Array.from({ length: player.length }, (_, i) => (tokenAt(i) === MASK ? null : textOf(tokenAt(i))));
  if (options.view === "tokens") return own.map((text) => text && visible(text, true));
  return joined(own).map((text) => text && visible(text, false));
}

function buildText() {
  const ghosts = texts((i) => player.finalToken(i));
  spans = ghosts.map((ghost, i) => {
    const span = el("span", { tabIndex: -1 });
    span.dataset.i = i;
    span.dataset.ghost = ghost || "\u00b7\u00b7";
    span.setAttribute("role", "option");
    return span;
  });
  const nodes = spans.flatMap((span, i) => {
    const token = player.finalToken(i);
    const ends = token === MASK ? 0 : textOf(token).split("\n").length - 1;
    return [span, ...Array.from({ length: Math.min(ends, MOST_BREAKS) }, () => el("br"))];
  });
  list.replaceChildren(...nodes);
  list.dataset.view = options.view;
  list.dataset.pace = player.num > MOST_FADING ? "fast" : "slow";
  if (spans.length) spans[chosen ?? 0].tabIndex = 0;
  paint(spans.keys());
}

function paint(positions) {
  const shown = texts((i) => player.token(i));
  const fresh = new Set(player.fresh());
  for (const i of positions) look(i, fresh.has(i));
  for (let i = 0; i < spans.length; i++) {
    const text = shown[i] ?? "";
    if (spans[i].textContent !== text) spans[i].textContent = text;
  }
}

function look(i, fresh) {
  const span = spans[i], change = player.at[i], token = player.token(i);
  const names = [];
  if (player.given[i]) names.push("given");
  else if (token === MASK) names.push("mask", change ? "again" : "");
  else if (!change) names.push("noise");
  else {
    names.push("made", change.kind === REPLACED ? "replaced" : "");
    const weight = options.color === "step" ? change.step / Math.max(player.num - 1, 1) : change.confidence;
    if (weight === null) names.push("unknown");
    else span.style.setProperty("--w", weight);
  }
  if (fresh) names.push("new");
  span.className = names.filter(Boolean).join(" ");
  span.setAttribute("aria-selected", i === chosen && pinned);
  if (token === MASK) span.setAttribute("aria-label", change ? "masked again" : "mask");
  else span.removeAttribute("aria-label");
}

// ---- one token

function choose(i, pin) {
  const old = chosen;
  chosen = i;
  pinned = pin && i !== null;
  for (const j of [old, i]) if (j !== null && spans[j]) {
    spans[j].tabIndex = j === i ? 0 : -1;
    spans[j].setAttribute("aria-selected", j === i && pinned);
  }
  if (i === null && spans.length) spans[0].tabIndex = 0;
  describe();
}

function describe() {
  const panel = $("aside.token");
  if (chosen === null) return panel.replaceChildren(...overview());
  const change = player.at[chosen], token = player.token(chosen);
  const parts = [el("h2", {}, "token ", name(token))];
  const facts = [["position", String(chosen)]];
  if (token !== MASK) facts.push(["id", String(DATA.tokens[token][0])]);
  if (player.given[chosen]) facts.push(["", "given"]);
  else if (!change) facts.push(["", token === MASK ? "not decided yet" : "noise that it began with"]);
  else {
    const words = { [COMMITTED]: "committed", [REMASKED]: "masked again", [REPLACED]: "replaced" };
    facts.push([words[change.kind], `in step ${change.step + 1}, t ${player.steps[change.step].t.toFixed(3)}`]);
    facts.push([change.kind === REMASKED ? "confidence in what was there" : "confidence", percent(change.confidence)]);
  }
  parts.push(el("dl", {}, ...facts.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])));
  if (change && change.others.length) parts.push(el("h3", {}, "likeliest then"), bars(change));
  const past = player.history(chosen);
  if (past.length > 1) parts.push(el("h3", {}, "what was here"), story(past));
  panel.replaceChildren(...parts);
}

function name(token) {
  if (token === MASK) return el("code", { className: "none" }, "mask");
  return el("code", { dir: "auto" }, visible(textOf(token), true) || "(empty)");
}

function bars(change) {
  const rows = [];
  for (let k = 0; k < change.others.length; k += 2) {
    const [token, probability] = [change.others[k], change.others[k + 1]];
    const bar = el("i");
    bar.style.setProperty("--p", probability);
    rows.push(el("li", { className: token === change.token ? "own" : "" }, name(token), bar, el("span", {}, percent(probability))));
  }
  return el("ol", { className: "bars" }, ...rows);
}

function story(past) {
  return el("ol", { className: "story" }, ...past.slice(-12).map((change) =>
    el("li", {}, `step ${change.step + 1} `, name(change.token), change.confidence === null || change.kind === REMASKED ? "" : ` ${percent(change.confidence)}`)));
}

function overview() {
  const all = player.steps.flatMap((step) => step.changes);
  const known = all.filter((change) => change.kind !== REMASKED && change.confidence !== null);
  const mean = known.length ? percent(known.reduce((sum, change) => sum + change.confidence, 0) / known.length) : "not known";
  const count = (kind) => String(all.filter((change) => change.kind === kind).length);
  const facts = [["positions", String(player.length)], ["given", String(player.length - player.free)], ["steps", String(player.num)],
    ["passes of the network", String(player.passes.at(-1))], ["committed", count(COMMITTED)], ["masked again", count(REMASKED)],
    ["replaced", count(REPLACED)], ["mean confidence", mean]];
  return [el("h2", {}, players.length > 1 ? `sample ${current + 1}` : "the sample"),
    el("dl", {}, ...facts.flatMap(([key, value]) => [el("dt", {}, key), el("dd", {}, value)])),
    el("p", { className: "quiet" }, "Point at a token, or click it, to see when it was decided, how sure the network was and what else it thought of.")];
}

list.addEventListener("pointerover", (event) => {
  const i = event.target.dataset.i;
  if (i !== undefined && !pinned && event.pointerType !== "touch") choose(Number(i), false);
});
list.addEventListener("pointerleave", () => pinned || choose(null, false));
list.addEventListener("click", (event) => {
  const i = event.target.dataset.i === undefined ? null : Number(event.target.dataset.i);
  const same = pinned && i === chosen;
  choose(same ? null : i, !same);
});
list.addEventListener("focusin", (event) => {
  if (event.target.matches(":focus-visible") && event.target.dataset.i !== undefined) choose(Number(event.target.dataset.i), true);
});

// ---- the chart

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function drawChart() {
  const chart = $(".chart"), width = Math.max(player.num, 1), high = Math.max(player.free, 1);
  chart.setAttribute("viewBox", `0 0 ${width} ${high}`);
  const line = (counts) => counts.map((count, s) => `${s ? "L" : "M"}${s} ${high - count}`).join("");
  const decided = Array.from({ length: player.num + 1 }, (_, s) => player.decided(s));
  const settled = player.settled();
  const differs = settled.some((count, s) => count !== decided[s]);
  const marks = player.steps.flatMap((step, s) => (step.changes.some((change) => change.kind === REMASKED) ? [`M${s + 1} ${high}v${-high / 8}`] : []));
  chart.replaceChildren(
    svg("path", { class: "area", d: `${line(decided)}L${width} ${high}L0 ${high}Z` }), svg("path", { class: "line", d: line(decided) }),
    ...(differs ? [svg("path", { class: "settled", d: line(settled) })] : []), svg("path", { class: "marks", d: marks.join("") || "M0 0" }),
    svg("line", { class: "head", x1: 0, x2: 0, y1: 0, y2: high }));
  $(".counts").title = differs ? "shaded: tokens decided; dashed: those that stay to the end; ticks: tokens masked again" : "shaded: tokens decided";
  $(".scrub").max = player.num;
}

function drag(event) {
  if (!event.buttons) return;
  const { left, width } = $(".chart").getBoundingClientRect();
  pause();
  go(Math.round(((event.clientX - left) / width) * player.num));
}
$(".chart").addEventListener("pointerdown", (event) => (event.currentTarget.setPointerCapture(event.pointerId), drag(event)));
$(".chart").addEventListener("pointermove", drag);

// ---- going through the steps

function go(step) {
  paint(player.seek(step));
  showStep();
  keepInSight();
  if (chosen !== null) describe();
  remember();
}

// While a long text is filled from left to right, keep the place where it grows in sight.
function keepInSight() {
  const box = $(".text");
  if (!playing || box.scrollHeight <= box.clientHeight) return;
  const first = spans.findIndex((_, i) => player.token(i) === MASK);
  const beyond = first < 0 ? Infinity : spans.filter((_, i) => i > first && !player.given[i] && player.token(i) !== MASK).length;
  if (beyond > MOST_BEYOND) return;
  const [place, view] = [spans[first].getBoundingClientRect(), box.getBoundingClientRect()];
  if (place.bottom > view.bottom || place.top < view.top) box.scrollTop += place.top - view.top - view.height / 2;
}

function showStep() {
  const { step, num } = player;
  $(".where").textContent = `step ${step} of ${num}`;
  const t = step ? player.steps[step - 1].t : player.num ? player.steps[0].t : 1;
  const passes = player.passes[step];
  $(".counts").textContent = `${player.decided(step)} of ${player.free} decided \u00b7 ${passes} pass${passes === 1 ? "" : "es"} \u00b7 t ${t.toFixed(3)}`;
  $(".scrub").value = step;
  $(".scrub").setAttribute("aria-valuetext", `step ${step} of ${num}`);
  for (const end of ["x1", "x2"]) $(".head").setAttribute(end, step);
  for (const name of ["first", "back"]) $(`.${name}`).disabled = step === 0;
  for (const name of ["next", "last"]) $(`.${name}`).disabled = step === num;
}

function play() {
  if (player.step === player.num) go(0);
  let before = null;
  progress = player.step;
  const frame = (now) => {
    const rate = Math.min(Math.max(player.num / SECONDS, 3), 128) * Number($(".speed").value);
    progress += before === null ? 0 : (Math.min(now - before, 250) / 1000) * rate;
    before = now;
    if (Math.floor(progress) > player.step) go(Math.floor(progress));
    if (player.step >= player.num) return pause();
    playing = requestAnimationFrame(frame);
  };
  playing = requestAnimationFrame(frame);
  showPlaying();
}

function pause() {
  cancelAnimationFrame(playing);
  playing = 0;
  showPlaying();
  remember();
}

function showPlaying() {
  const button = $(".play");
  button.setAttribute("aria-label", playing ? "pause" : "play");
  button.firstChild.textContent = playing ? "\u2759\u2759" : "\u25b6\ufe0e";
}

const toggle = () => (playing ? pause() : play());
const jump = (step) => (pause(), go(step));

function select(index, step) {
  current = Math.max(0, Math.min(players.length - 1, index));
  player = players[current];
  chosen = null;
  pinned = false;
  player.seek(step);
  progress = player.step;
  [...$(".tabs").children].forEach((tab, k) => {
    tab.setAttribute("aria-selected", k === current);
    tab.tabIndex = k === current ? 0 : -1;
  });
  $(".prompt").hidden = !player.prompt;
  $(".prompt q").textContent = visible(player.prompt, false);
  $(".end pre").textContent = player.text.replace(HIDDEN, (letter) => (letter === "\t" ? letter : escaped(letter)));
  drawChart();
  buildText();
  showStep();
  describe();
  remember();
}

// ---- controls

const buttons = { play: toggle, first: () => jump(0), back: () => jump(player.step - 1), next: () => jump(player.step + 1), last: () => jump(player.num) };
for (const [name, act] of Object.entries(buttons)) $(`button.${name}`).onclick = act;
$(".scrub").oninput = (event) => jump(Number(event.target.value));

function set(choice, value) {
  options[choice] = value;
  for (const button of document.querySelectorAll(`[data-choice="${choice}"]`)) button.setAttribute("aria-pressed", button.dataset.value === value);
  document.body.dataset[choice] = value;
  const [low, high] = options.color === "step" ? ["step 1", `step ${player?.num ?? ""}`] : ["0%", "100% sure"];
  $(".low").textContent = low;
  $(".high").textContent = high;
}
for (const button of document.querySelectorAll("[data-choice]")) button.onclick = () => {
  set(button.dataset.choice, button.dataset.value);
  buildText();
  remember();
};

$(".copy").onclick = async () => {
  const texts = joined(Array.from({ length: player.length }, (_, i) => (player.token(i) === MASK ? null : textOf(player.token(i)))));
  const text = player.step === player.num ? player.text : texts.map((one) => one ?? "[MASK]").join("");
  try {
    await navigator.clipboard.writeText(text);
    say("copied");
  } catch {
    $(".end").open = true;
    getSelection().selectAllChildren($(".end pre"));
    say("the browser does not let the page copy: the final text is selected below");
  }
};

let silence = 0;
function say(text) {
  $(".said").textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => ($(".said").textContent = ""), 2500);
}

players.forEach((_, k) => {
  const tab = el("button", { type: "button" }, String(k + 1));
  tab.setAttribute("role", "tab");
  tab.setAttribute("aria-label", `sample ${k + 1}`);
  tab.onclick = () => (select(k, player.step), tab.focus());
  $(".tabs").append(tab);
});
$(".tabs").hidden = players.length < 2;

function nextToken(by) {
  const newest = player.fresh()[0] ?? 0;
  const i = chosen === null ? newest : Math.max(0, Math.min(spans.length - 1, chosen + by));
  choose(i, true);
  spans[i].focus();
}

const keys = {
  " ": toggle, ArrowLeft: () => jump(player.step - 1), ArrowRight: () => jump(player.step + 1), Home: () => jump(0), End: () => jump(player.num),
  ArrowUp: () => nextToken(-1), ArrowDown: () => nextToken(1), Escape: () => choose(null, false),
};
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, pre")) return;
  if (event.key === " " && event.target.matches("button, summary")) return; // which it presses
  if (/^Arrow(Up|Down)$/.test(event.key) && !event.target.closest(".tokens") && event.target !== document.body) return;
  const digit = /^[1-9]$/.test(event.key) && Number(event.key) <= players.length ? () => select(Number(event.key) - 1, player.step) : null;
  const act = keys[event.key] ?? digit;
  if (!act || !spans.length) return;
  event.preventDefault();
  act();
});

// ---- links: #sample=2&step=12&color=confidence&view=tokens&token=5

let writing = 0;
function remember() {
  clearTimeout(writing);
  if (playing) return;
  writing = setTimeout(() => {
    const parts = [`sample=${current + 1}`, `step=${player.step}`];
    if (options.color !== "step") parts.push(`color=${options.color}`);
    if (options.view !== "text") parts.push(`view=${options.view}`);
    try {
      history.replaceState(null, "", `#${parts.join("&")}`);
    } catch {
      // a frame without an address of its own has no links
    }
  }, 300);
}

function follow() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const number = (key, otherwise) => (/^\d+$/.test(wanted.get(key) ?? "") ? Number(wanted.get(key)) : otherwise);
  pause();
  const sample = Math.max(0, Math.min(players.length - 1, number("sample", 1) - 1));
  player = players[sample];
  set("color", wanted.get("color") === "confidence" ? "confidence" : "step");
  set("view", wanted.get("view") === "tokens" ? "tokens" : "text");
  select(sample, number("step", calm.matches ? player.num : 0));
  const token = number("token", null);
  if (token !== null && token < player.length) choose(token, true);
  return wanted.has("step");
}

if (players.length) {
  addEventListener("hashchange", follow);
  if (!follow() && !calm.matches) play();
}
