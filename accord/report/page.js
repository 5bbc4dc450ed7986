// Curves that can be read and enlarged, by pointer, touch and keyboard. Without this script the page is complete, too.
"use strict";
const TALL = 1000, LEFT = 54, TOP = 8, WIDE = 358, HIGH = 172;
const charts = [];

function ticks(low, high, most, whole) {
  let size = 10 ** Math.floor(Math.log10((high - low) / most));
  size *= [1, 2, 5, 10].find(k => (high - low) / (size * k) <= most + 1) || 10;
  if (whole) size = Math.max(size, 1);
  const digits = Math.max(0, -Math.floor(Math.log10(size) + 1e-9)), found = [];
  for (let i = Math.ceil(low / size - 1e-9); i * size <= high + size * 1e-9; i++) {
    const t = i * size;
    const plain = digits <= 4 && Math.max(Math.abs(low), Math.abs(high)) < 1e6;
    found.push([t, (plain ? t.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits}) : t.toPrecision(3)).replace("-", "−")]);
  }
  return found;
}
const short = v => Math.abs(v) >= 1e3 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(3)).replace("-", "−");

class Curve {
  constructor(figure) {
    this.figure = figure;
    this.plot = figure.querySelector(".plot");
    [this.x0, this.x1, this.y0, this.y1] = ["x0", "x1", "y0", "y1"].map(k => +this.plot.dataset[k]);
    this.inner = this.plot.querySelector("svg svg");
    this.lines = [...this.inner.querySelectorAll("path")].map(p => ({
      name: p.dataset.name, pale: p.classList.contains("pale"),
      points: [...p.getAttribute("d").matchAll(/[ML]([-\d.e+]+) ([-\d.e+]+)/g)].map(m => [this.x0 + +m[1], this.y1 - m[2] / TALL * (this.y1 - this.y0)]),
    }));
    this.steps = [...new Set(this.lines.flatMap(l => l.points.map(p => p[0])))].sort((a, b) => a - b);
    this.view = [this.x0, this.x1];
    this.readout = figure.querySelector(".readout");
    this.whole = figure.querySelector("button");
    const svg = this.plot.firstElementChild;
    const make = (name, cls) => { const e = document.createElementNS(svg.namespaceURI, name); e.setAttribute("class", cls); svg.append(e); return e; };
    this.cursor = make("line", "cursor"); this.picked = make("rect", "picked");
    this.listen();
  }
  px(x) { return LEFT + (x - this.view[0]) / (this.view[1] - this.view[0]) * WIDE; }
  step(event) {
    const box = this.plot.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width * 420 - LEFT) / WIDE;
    return this.view[0] + Math.min(1, Math.max(0, share)) * (this.view[1] - this.view[0]);
  }
  near(x) { return this.steps.reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a); }
  read(x) {
    this.at = x;
    const inside = x >= this.view[0] && x <= this.view[1];
    for (const [k, v] of Object.entries({x1: this.px(x), x2: this.px(x), y1: TOP, y2: TOP + HIGH})) this.cursor.setAttribute(k, v);
    this.cursor.style.display = inside ? "" : "none";
    const told = this.lines.filter(l => l.points.length && !l.pale).map(l => {
      const [s, v] = l.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
      return `${l.name} ${short(v)}` + (s === x ? "" : ` (step ${s})`);
    });
    this.readout.textContent = `step ${x.toLocaleString("en")}: ` + told.join(", ");
    this.plot.setAttribute("aria-valuenow", x);
    this.plot.setAttribute("aria-valuetext", this.readout.textContent);
  }
  show(low, high) {
    low = Math.max(this.x0, low); high = Math.min(this.x1, high);
    if (!(high - low >= 1)) return;
    this.view = [low, high];
    const full = low === this.x0 && high === this.x1;
    let values = this.lines.flatMap(l => l.points).filter(p => p[0] >= low && p[0] <= high).map(p => p[1]);
    let [y0, y1] = [this.y0, this.y1];
    if (!full && values.length) {
      y0 = values.reduce((a, b) => Math.min(a, b)); y1 = values.reduce((a, b) => Math.max(a, b));
      const room = ((y1 - y0) || (this.y1 - this.y0) * .05) * .06;
      [y0, y1] = [y0 - room, y1 + room];
    }
    const tall = v => (this.y1 - v) / (this.y1 - this.y0) * TALL;
    this.inner.setAttribute("viewBox", `${low - this.x0} ${tall(y1)} ${high - low} ${tall(y0) - tall(y1)}`);
    const part = (cls, made) => { this.plot.querySelector(cls).innerHTML = made.join(""); };
    const ys = ticks(y0, y1, 4).map(([t, text]) => [TOP + (y1 - t) / (y1 - y0) * HIGH, text]);
    part(".grid", ys.map(([y]) => `<line x1="${LEFT}" x2="${LEFT + WIDE}" y1="${y}" y2="${y}"/>`));
    part(".y", ys.map(([y, text]) => `<text x="${LEFT - 5}" y="${y + 4}" text-anchor="end">${text}</text>`));
    part(".x", ticks(low, high, 5, true).map(([t, text]) => `<text x="${this.px(t)}" y="${TOP + HIGH + 15}" text-anchor="middle">${text}</text>`));
    for (const mark of this.plot.querySelectorAll(".marks g")) {
      const x = +mark.dataset.step;
      mark.style.display = x >= low && x <= high ? "" : "none";
      mark.setAttribute("transform", `translate(${this.px(x)} 0)`);
    }
    this.whole.hidden = full;
    if (this.at !== undefined) this.read(this.at);
  }
  all(what) { for (const c of charts) if (c.figure.dataset.with === this.figure.dataset.with) what(c); }
  listen() {
    const plot = this.plot;
    let from = null;
    for (const [k, v] of Object.entries({role: "slider", tabindex: 0, "aria-valuemin": this.x0, "aria-valuemax": this.x1, "aria-valuenow": this.x1, "aria-valuetext": plot.getAttribute("aria-label"), "aria-label": plot.dataset.title + ", by step"})) plot.setAttribute(k, v);
    plot.addEventListener("pointerdown", e => { if (e.button === 0) { from = this.step(e); plot.setPointerCapture(e.pointerId); } });
    plot.addEventListener("pointermove", e => {
      const x = this.near(this.step(e));
      this.all(c => c.read(c.near(x)));
      if (from === null) return;
      const [a, b] = [from, this.step(e)].sort((p, q) => p - q);
      for (const [k, v] of Object.entries({x: this.px(a), width: this.px(b) - this.px(a), y: TOP, height: HIGH})) this.picked.setAttribute(k, v);
    });
    const end = e => {
      if (from === null) return;
      const [a, b] = [from, this.step(e)].sort((p, q) => p - q);
      from = null; this.picked.setAttribute("width", 0);
      if (e.type === "pointerup" && (b - a) / (this.view[1] - this.view[0]) > .03) this.all(c => c.show(a, b));
    };
    plot.addEventListener("pointerup", end); plot.addEventListener("pointercancel", end);
    plot.addEventListener("dblclick", () => this.all(c => c.show(c.x0, c.x1)));
    this.whole.addEventListener("click", () => { this.all(c => c.show(c.x0, c.x1)); plot.focus(); });
    plot.addEventListener("keydown", e => {
      const at = this.steps.indexOf(this.near(this.at ?? this.x1)), far = e.shiftKey ? 10 : 1;
      const go = {ArrowLeft: at - far, ArrowDown: at - far, ArrowRight: at + far, ArrowUp: at + far, PageDown: at - 10, PageUp: at + 10, Home: 0, End: this.steps.length - 1}[e.key];
      const size = {"+": .25, "=": .25, "-": 1}[e.key], here = this.steps[at], wide = this.view[1] - this.view[0];
      if (go !== undefined) { const x = this.steps[Math.max(0, Math.min(this.steps.length - 1, go))]; this.all(c => c.read(c.near(x))); }
      else if (size) this.all(c => c.show(here - wide * size, here + wide * size));
      else if (e.key === "0" || e.key === "Escape") this.all(c => c.show(c.x0, c.x1));
      else return;
      e.preventDefault();
    });
  }
}
for (const figure of document.querySelectorAll("figure[data-with]")) charts.push(new Curve(figure));
for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
addEventListener("beforeprint", () => { for (const d of document.querySelectorAll("details.print")) d.open = true; });
