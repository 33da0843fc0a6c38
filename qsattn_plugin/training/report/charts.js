"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const DASHES = ["", "6 3", "2 3", "8 3 2 3"];
  const HEIGHT = 230;
  const EDGE = { left: 50, right: 10, top: 12, bottom: 26 };

  const escape = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
  const exact = (v) => {
    if (v === null || v === undefined) return "–";
    if (v !== 0 && (Math.abs(v) >= 1e6 || Math.abs(v) < 1e-3)) return v.toExponential(2);
    return String(Number(v.toPrecision(4)));
  };
  const short = (v) => {
    if (Math.abs(v) >= 1e6) return `${Number((v / 1e6).toPrecision(3))}M`;
    if (Math.abs(v) >= 1e4) return `${Number((v / 1e3).toPrecision(3))}k`;
    if (Math.abs(v) >= 1e3) return v.toLocaleString("en");
    return v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(0) : String(Number(v.toPrecision(3)));
  };
  const thousands = (v) => v.toLocaleString("en");

  // An exponential mean that does not favour its first value; gaps stay gaps.
  const smoothed = (values, weight) => {
    let sum = 0, share = 0;
    return values.map((v) => {
      if (v === null) return null;
      sum = weight * sum + (1 - weight) * v;
      share = weight * share + (1 - weight);
      return sum / share;
    });
  };

  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((f) => f * unit >= rough) * unit;
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-6; i++) found.push(i * step);
    return found;
  };

  const decades = (low, high) => {
    const found = [];
    const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
    const every = Math.ceil((to - from) / 6);
    for (let e = from; e <= to; e += every) for (const f of to - from > 2 ? [1] : [1, 2, 5]) found.push(f * 10 ** e);
    return found.filter((v) => v >= low * 0.999 && v <= high * 1.001);
  };

  const state = { smoothing: 0, logarithmic: false, step: null };
  const all = [];

  class Chart {
    constructor(spec, host) {
      const source = spec.kind === "scores" ? data.scores : data.train;
      this.spec = spec;
      this.steps = source.steps;
      this.values = spec.names.map((name) => source.series[name] || []);
      this.visible = spec.names.map(() => true);
      this.at = null;
      this.element = document.createElement("div");
      this.element.className = "chart";
      const unit = spec.unit ? ` <span>${escape(spec.unit)}</span>` : "";
      this.element.innerHTML = `<h3>${escape(spec.title)}${unit}</h3><div class="plot"></div><div class="legend"></div>`;
      host.append(this.element);
      this.plot = this.element.querySelector(".plot");
      this.legend = this.element.querySelector(".legend");
      this.plot.tabIndex = 0;
      // To a screen reader a curve is a slider over its steps, whose value is what the curves have there.
      this.plot.setAttribute("role", "slider");
      this.plot.setAttribute("aria-label", spec.title);
      this.plot.setAttribute("aria-valuemin", 0);
      this.plot.setAttribute("aria-valuemax", Math.max(0, this.steps.length - 1));
      this.listen();
      new ResizeObserver(() => this.draw()).observe(this.plot);
      this.draw();
      all.push(this);
    }

    listen() {
      const seek = (event) => {
        const box = this.plot.getBoundingClientRect();
        if (this.steps.length) this.look(this.nearest(this.step((event.clientX - box.left) / box.width * this.width)));
      };
      this.plot.addEventListener("pointermove", seek);
      this.plot.addEventListener("pointerdown", seek);
      this.plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") this.look(null); });
      this.plot.addEventListener("blur", () => this.look(null));
      this.plot.addEventListener("keydown", (event) => {
        const last = this.steps.length - 1;
        const here = this.at === null ? this.nearest(state.step) : this.at;
        const jump = Math.max(1, Math.round(last / 50));
        const to = { ArrowLeft: here - 1, ArrowRight: here + 1, PageDown: here - jump, PageUp: here + jump, Home: 0, End: last }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        if (last < 0) return;
        this.look(Math.min(last, Math.max(0, to)));
      });
      this.legend.addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        const i = Number(button.dataset.i);
        this.visible[i] = !this.visible[i];
        this.draw();
        this.legend.querySelector(`button[data-i="${i}"]`).focus();
      });
    }

    // The point closest to a step; without one, the last.
    nearest(step) {
      if (step === null) return this.steps.length - 1;
      return this.steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(this.steps[best] - step) ? i : best), 0);
    }

    look(index) {
      this.at = index;
      this.drawCursor();
      this.drawLegend();
    }

    get smoothing() { return this.spec.smooth && this.spec.kind === "lines" ? state.smoothing : 0; }
    get dots() { return this.steps.length <= 40 && this.smoothing === 0; }
    x(step) {
      const [low, high] = this.domain;
      return EDGE.left + (high > low ? (step - low) / (high - low) : 0.5) * (this.width - EDGE.left - EDGE.right);
    }
    step(x) {
      const [low, high] = this.domain;
      return low + (x - EDGE.left) / (this.width - EDGE.left - EDGE.right) * (high - low);
    }
    y(v) {
      const [low, high] = this.range;
      const part = this.logarithmic ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low);
      return HEIGHT - EDGE.bottom - part * (HEIGHT - EDGE.top - EDGE.bottom);
    }

    scale() {
      const shown = this.values.filter((_, i) => this.visible[i]).flat().filter((v) => v !== null);
      this.logarithmic = this.spec.section === "losses" && state.logarithmic && shown.length > 0 && shown.every((v) => v > 0);
      let low = Infinity, high = -Infinity;
      for (const v of shown) { if (v < low) low = v; if (v > high) high = v; }
      if (!shown.length) { low = 0; high = 1; }
      if (this.spec.low !== null) low = Math.min(low, this.spec.low);
      if (this.spec.high !== null) high = Math.max(high, this.spec.high);
      if (high - low <= 1e-12 * Math.abs(high)) { high += Math.abs(high) / 2 || 1; if (!this.logarithmic) low -= Math.abs(low) / 2; }
      const room = this.logarithmic ? 0 : (high - low) * 0.06;
      this.range = [low === this.spec.low ? low : low - room, high === this.spec.high ? high : high + room];
      // Charts of one training share their horizontal axis, so that they can be compared at a glance.
      this.domain = [0, Math.max(data.train.steps.at(-1) || 0, data.scores.steps.at(-1) || 0, 1)];
    }

    path(values) {
      let text = "", pen = false;
      values.forEach((v, i) => {
        if (v === null) { pen = false; return; }
        text += `${pen ? "L" : "M"}${this.x(this.steps[i]).toFixed(1)} ${this.y(v).toFixed(1)}`;
        pen = true;
      });
      return text;
    }

    area(below, above) {
      const known = this.steps.map((_, i) => i).filter((i) => below[i] !== null && above[i] !== null);
      const point = (i, v) => `${this.x(this.steps[i]).toFixed(1)},${this.y(v[i]).toFixed(1)}`;
      return [...known.map((i) => point(i, above)), ...known.reverse().map((i) => point(i, below))].join(" ");
    }

    draw() {
      this.width = Math.max(260, Math.round(this.plot.clientWidth) || 520);
      this.scale();
      const { width } = this, bottom = HEIGHT - EDGE.bottom;
      const parts = [];
      for (const v of this.logarithmic ? decades(...this.range) : ticks(...this.range, 4)) {
        const y = this.y(v).toFixed(1);
        parts.push(`<line class="grid" x1="${EDGE.left}" x2="${width - EDGE.right}" y1="${y}" y2="${y}"/>`);
        parts.push(`<text x="${EDGE.left - 8}" y="${y}" dy="4" text-anchor="end">${short(v)}</text>`);
      }
      for (const s of ticks(...this.domain, Math.max(2, Math.floor(width / 110)))) {
        const end = this.x(s) > width - 30;
        parts.push(`<text x="${end ? width - EDGE.right : this.x(s).toFixed(1)}" y="${bottom + 18}" text-anchor="${end ? "end" : "middle"}">${s === 0 ? "step 0" : short(s)}</text>`);
      }
      if (this.spec.kind === "scores" && data.best !== null) {
        const x = this.x(data.best).toFixed(1), end = this.x(data.best) > width - 60;
        if (this.spec.names[0] === data.leading) {
          parts.push(`<line class="cursor" x1="${x}" x2="${x}" y1="${EDGE.top}" y2="${bottom}"/>`);
          parts.push(`<text x="${x}" dx="${end ? -5 : 5}" y="${EDGE.top + 8}" text-anchor="${end ? "end" : "start"}">best</text>`);
        }
      }
      parts.push(this.spec.kind === "bands" ? this.bands() : this.lines());
      parts.push(`<g class="moving"></g>`);
      this.plot.innerHTML = `<svg viewBox="0 0 ${width} ${HEIGHT}" aria-hidden="true">${parts.join("")}</svg>`;
      this.moving = this.plot.querySelector(".moving");
      this.drawCursor();
      this.drawLegend();
    }

    lines() {
      return this.values.map((values, i) => {
        if (!this.visible[i]) return "";
        const look = `s${i % 8}" stroke-dasharray="${DASHES[Math.floor(i / 2) % 4]}`;
        const faint = this.smoothing ? `<path class="line raw s${i % 8}" d="${this.path(values)}"/>` : "";
        const shown = this.smoothing ? smoothed(values, this.smoothing) : values;
        const dots = this.dots
          ? values.map((v, j) => (v === null ? "" : `<circle class="dot s${i % 8}" r="3.2" cx="${this.x(this.steps[j]).toFixed(1)}" cy="${this.y(v).toFixed(1)}"/>`)).join("")
          : "";
        return `${faint}<path class="line ${look}" d="${this.path(shown)}"/>${dots}`;
      }).join("");
    }

    bands() {
      const n = this.values.length, parts = [];
      for (let i = 0; i < Math.floor(n / 2); i++) parts.push(`<polygon class="band s0" points="${this.area(this.values[i], this.values[n - 1 - i])}"/>`);
      if (n % 2) parts.push(`<path class="line s0" d="${this.path(this.values[(n - 1) / 2])}"/>`);
      return parts.join("");
    }

    drawCursor() {
      const bottom = HEIGHT - EDGE.bottom, parts = [];
      const bar = (name, step) => `<line class="${name}" x1="${this.x(step)}" x2="${this.x(step)}" y1="${EDGE.top}" y2="${bottom}"/>`;
      if (state.step !== null) parts.push(bar("now", state.step));
      if (this.at !== null && this.steps.length) {
        parts.push(bar("cursor", this.steps[this.at]));
        this.values.forEach((values, i) => {
          const v = values[this.at];
          if (!this.visible[i] || v === null || v === undefined) return;
          parts.push(`<circle class="dot s${this.spec.kind === "bands" ? 0 : i % 8}" r="4" cx="${this.x(this.steps[this.at])}" cy="${this.y(v)}"/>`);
        });
      }
      this.moving.innerHTML = parts.join("");
    }

    drawLegend() {
      const at = this.at === null ? this.nearest(state.step) : this.at;
      const entries = this.spec.labels.map((label, i) => {
        const value = `<b>${exact(this.values[i][at])}</b>`;
        if (this.spec.kind === "bands") return `<span class="at">${escape(label)} ${value}</span>`;
        const sample = `<svg viewBox="0 0 22 8" aria-hidden="true"><line class="line s${i % 8}" stroke-dasharray="${DASHES[Math.floor(i / 2) % 4]}" x1="0" x2="22" y1="4" y2="4"/></svg>`;
        if (this.spec.labels.length === 1) return `<span class="at">${value}</span>`;
        return `<button type="button" data-i="${i}" aria-pressed="${this.visible[i]}">${sample}${escape(label)} ${value}</button>`;
      });
      const place = this.steps.length ? `<span class="at">step ${thousands(this.steps[at])}</span>` : "";
      this.legend.innerHTML = place + entries.join("");
      this.plot.setAttribute("aria-valuenow", Math.max(0, at));
      const read = this.spec.labels.map((label, i) => `${label} ${exact(this.values[i][at])}`).join(", ");
      this.plot.setAttribute("aria-valuetext", this.steps.length ? `step ${this.steps[at]}: ${read}` : "nothing logged");
    }
  }

  for (const spec of data.charts) new Chart(spec, document.querySelector(`#${spec.section} .charts`));
  const smoothing = document.getElementById("smoothing");
  const logarithmic = document.getElementById("logarithmic");
  const redraw = () => {
    state.smoothing = Number(smoothing.value);
    state.logarithmic = logarithmic.checked;
    smoothing.parentElement.querySelector("output").textContent = state.smoothing.toFixed(2);
    all.forEach((chart) => chart.draw());
  };
  const points = data.train.steps.length;
  smoothing.value = points < 30 ? 0 : points < 300 ? 0.6 : 0.94;
  document.querySelector(".controls").hidden = data.train.steps.length === 0;
  smoothing.addEventListener("input", redraw);
  logarithmic.addEventListener("change", redraw);
  redraw();

  document.addEventListener("qsattn-step", (event) => {
    state.step = event.detail;
    all.forEach((chart) => chart.look(chart.at));
  });
})();
