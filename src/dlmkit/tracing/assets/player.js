
"use strict";
// The state of one sample at any step: no drawing here. Step s means that s steps were taken.
const [COMMITTED, REMASKED, REPLACED] = [0, 1, 2];
const MASK = -1;

class Player {
  constructor(sample) {
    Object.assign(this, { prompt: sample.prompt, text: sample.text, given: sample.given, initial: sample.initial });
    this.length = sample.given.length;
    this.last = new Array(this.length).fill(null); // newest change at each position, each linked to the one before
    this.steps = sample.steps.map(([t, passes, decided, changes], index) => ({
      t, passes, decided,
      changes: changes.map(([position, token, before, kind, confidence, others]) => {
        const change = { position, token, before, kind, confidence, others, step: index, past: this.last[position] };
        return (this.last[position] = change);
      }),
    }));
    this.num = this.steps.length;
    this.final = this.last;
    this.free = this.length - this.given.reduce((sum, flag) => sum + flag, 0);
    this.passes = [0];
    for (const step of this.steps) this.passes.push(this.passes.at(-1) + step.passes);
    this.at = new Array(this.length).fill(null);
    this.step = 0;
  }

  // Go to a step; returns the positions that may look different.
  seek(step) {
    step = Math.max(0, Math.min(this.num, step));
    const touched = new Set(this.fresh());
    for (; this.step < step; this.step++) for (const change of this.steps[this.step].changes) {
      this.at[change.position] = change;
      touched.add(change.position);
    }
    for (; this.step > step; this.step--) for (const change of this.steps[this.step - 1].changes) {
      this.at[change.position] = change.past;
      touched.add(change.position);
    }
    for (const position of this.fresh()) touched.add(position);
    return touched;
  }

  // Positions that the step just taken changed.
  fresh() {
    return this.step ? this.steps[this.step - 1].changes.map((change) => change.position) : [];
  }

  token(position) {
    return this.at[position] ? this.at[position].token : this.initial[position];
  }

  finalToken(position) {
    return this.final[position] ? this.final[position].token : this.initial[position];
  }

  decided(step) {
    return step ? this.steps[step - 1].decided : this.initial.filter((token, i) => token !== MASK && !this.given[i]).length;
  }

  // For each step, the free positions that hold what they hold at the end.
  settled() {
    const counts = new Array(this.num + 1).fill(0);
    for (let i = 0; i < this.length; i++)
      if (!this.given[i] && this.finalToken(i) !== MASK) counts[this.final[i] ? this.final[i].step + 1 : 0]++;
    for (let s = 1; s <= this.num; s++) counts[s] += counts[s - 1];
    return counts;
  }

  // Everything that happened at a position up to now, oldest first.
  history(position) {
    const list = [];
    for (let change = this.at[position]; change; change = change.past) list.unshift(change);
    return list;
  }
}

// Controls and marks of direction, which would act on the page, as escapes; spaces and line ends as signs.
const HIDDEN = /[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;
const NAMES = { "\t": "\u21e5", "\r": "\\r" };

function escaped(letter) {
  const code = letter.charCodeAt(0);
  return NAMES[letter] ?? (code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0"));
}

function visible(text, spaces) {
  const shown = text.replace(HIDDEN, escaped).replaceAll("\n", "\u21b5");
  return spaces ? shown.replaceAll(" ", "\u00b7") : shown;
}

// Bytes of one character that several tokens share: where they are whole, the last of the tokens shows it.
const PARTIAL = /\\x[89a-f][0-9a-f]/;
const BYTE = /\\x([89a-f][0-9a-f])/g;

function joined(texts) {
  const out = [...texts];
  for (let i = 0; i < out.length; i++) {
    if (out[i] === null || !PARTIAL.test(out[i])) continue;
    let end = i;
    while (end + 1 < out.length && out[end + 1] !== null && PARTIAL.test(out[end + 1])) end++;
    joinRun(out, i, end);
    i = end;
  }
  return out;
}

function joinRun(out, start, end) {
  const bytes = [], owner = [];
  const encoder = new TextEncoder();
  for (let i = start; i <= end; i++) {
    const pieces = out[i].split(BYTE); // text, byte, text, byte, ... text
    pieces.forEach((piece, k) => {
      for (const byte of k % 2 ? [parseInt(piece, 16)] : encoder.encode(piece)) bytes.push(byte), owner.push(i);
    });
  }
  const shown = new Map();
  const add = (i, text) => shown.set(i, (shown.get(i) ?? "") + text);
  for (let k = 0; k < bytes.length; ) {
    const size = bytes[k] < 0x80 ? 1 : bytes[k] >= 0xf0 ? 4 : bytes[k] >= 0xe0 ? 3 : bytes[k] >= 0xc0 ? 2 : 0;
    const letter = size && k + size <= bytes.length ? decoded(bytes.slice(k, k + size)) : null;
    if (letter === null) add(owner[k], "\\x" + bytes[k].toString(16)), k++;
    else add(owner[k + size - 1], letter), (k += size);
  }
  for (let i = start; i <= end; i++) out[i] = shown.get(i) ?? "";
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

function decoded(bytes) {
  try {
    return strict.decode(new Uint8Array(bytes));
  } catch {
    return null;
  }
}
