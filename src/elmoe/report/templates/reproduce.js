"use strict";
// Draws the charts of the page from the rows that it carries. A chart is drawn when it comes into view, anew when a filter,
// a choice, the theme or its width changes.

const DATA = JSON.parse(document.getElementById("data").textContent);
const LABELS = DATA.labels;
const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["circle", "square", "triangle-up", "diamond"];
const DIVERGING = [[0, "#b35806"], [0.25, "#f1a340"], [0.5, "#f3f3f3"], [0.75, "#998ec3"], [1, "#542788"]];
const PERCENT = new Set(["acceptance_rate", "agreement", "overlap", "miss_rate", "deviation", "pool_fraction", "fits_share", "capacity_share"]);
const filters = {};
const tables = {};

// --- rows ---

function column(coded, count) {
  if (Array.isArray(coded)) return coded;
  if ("all" in coded) return Array(count).fill(coded.all);
  return coded.at.map((index) => coded.texts[index]);
}

function rowsOf(id) {
  if (!tables[id]) {
    const figure = DATA.figures[id];
    const names = Object.keys(figure.columns);
    const columns = names.map((name) => column(figure.columns[name], figure.count));
    tables[id] = Array.from({ length: figure.count }, (_, i) => Object.fromEntries(names.map((name, j) => [name, columns[j][i]])));
  }
  return tables[id];
}

const matches = (row, wanted) => Object.entries(wanted).every(([name, value]) => row[name] === value);
// A choice that a row has no value for does not concern it.
const suits = (row, picks) => Object.entries(picks).every(([name, value]) => row[name] === null || row[name] === undefined || row[name] === value);
const unique = (rows, name) => (name ? [...new Set(rows.map((row) => row[name]))] : [undefined]);

// --- words ---

function number(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(3)));
}

const called = (name) => LABELS.columns[name] ?? name.replaceAll("_", " ");
const known = (table, name) => (Object.hasOwn(table, name) ? table[name] : undefined);

function valueName(value, name, forms = LABELS.series) {
  const text = typeof value === "string" ? known(LABELS.values, value) ?? value : number(value);
  return (known(forms, name) ?? "{}").replace("{}", text);
}

function hint(name, value) {
  if (value === null || value === undefined) return null;
  if (PERCENT.has(name) && typeof value === "number") return `${called(name)}: ${(100 * value).toPrecision(3)} %`;
  return `${called(name)}: ${typeof value === "string" ? valueName(value, name) : number(value)}`;
}

function hints(chart, row) {
  const names = [chart.facet, chart.color, chart.dash, ...Object.keys(chart.pick ?? {}), chart.x, chart.y, chart.z, ...(chart.hover ?? [])];
  const lines = [...new Set(names.filter(Boolean))].map((name) => hint(name, row[name])).filter(Boolean);
  return lines.join("<br>").replaceAll("<i", "&lt;i");
}

// --- colours ---

const dark = () => document.documentElement.dataset.theme === "dark";
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function colorsOf(values) {
  const palette = dark() ? LABELS.dark : LABELS.light;
  const taken = new Set(values.map((value) => known(LABELS.colors, value)).filter((index) => index !== undefined));
  let free = palette.map((_, index) => index).filter((index) => !taken.has(index));
  if (!free.length) free = palette.map((_, index) => index);
  let next = 0;
  return new Map(values.map((value) => [value, palette[known(LABELS.colors, value) ?? free[next++ % free.length]]]));
}

// --- commands ---

function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\"'\"'")}'`;
}

function commandFor(id, row) {
  return DATA.figures[id].commands.find((command) => matches(row, command.where));
}

function commandText(command, row) {
  const words = [];
  for (const part of command.parts) {
    const names = [...part.matchAll(/\{(\w+)\}/g)].map((found) => found[1]);
    if (names.some((name) => row[name] === null || row[name] === undefined)) continue;
    for (const word of part.split(" ")) words.push(quoted(word.replaceAll(/\{(\w+)\}/g, (_, name) => String(row[name]))));
  }
  return words.join(" ");
}

function showCommand(id, row) {
  const command = row && commandFor(id, row);
  if (!command) return;
  const article = document.getElementById(id);
  article.querySelector("[data-command]").textContent = commandText(command, row);
  const lines = Object.entries(command.values).map(([name, path]) => {
    const factor = command.factors[name];
    const times = factor ? ` × ${number(row[factor])}` : "";
    return `${called(name)} = ${path}${times} = ${number(row[name])}`;
  });
  article.querySelector("[data-paths]").textContent = `In its JSON: ${lines.join("; ")}`;
}

// --- one chart ---

class ChartView {
  constructor(element) {
    this.element = element;
    this.id = element.dataset.figure;
    this.chart = DATA.figures[this.id].charts[Number(element.dataset.chart)];
    this.picks = { ...(this.chart.pick ?? {}) };
    this.hidden = new Set();
    this.drawn = false;
  }

  base() {
    return rowsOf(this.id).filter((row) => matches(row, this.chart.where ?? {}));
  }

  // What the filters at the top choose, where this chart has it.
  filtered(rows) {
    let found = rows;
    for (const [name, value] of Object.entries(filters)) {
      if (value && rows.some((row) => row[name] === value)) found = found.filter((row) => row[name] === value);
    }
    return found;
  }

  draw() {
    this.drawn = true;
    const old = this.element.querySelector(".view");
    if (old) { old.querySelectorAll(".plot").forEach((plot) => Plotly.purge(plot)); old.remove(); }
    const view = document.createElement("div");
    view.className = "view";
    this.element.append(view);
    const all = this.filtered(this.base());
    view.append(this.controls([...all, ...this.outlined()]));
    const rows = all.filter((row) => suits(row, this.picks));
    if (!rows.length) {
      const none = document.createElement("p");
      none.className = "none";
      none.textContent = "No point for this choice.";
      view.append(none);
      return;
    }
    this.colors = colorsOf(unique(this.base(), this.chart.color));  // of all, so that a filter changes no colour
    this.dashes = new Map(unique(this.base(), this.chart.dash).map((value, i) => [value, i]));
    view.append(this.legend(rows));
    const facets = unique(rows, this.chart.facet);
    const panels = document.createElement("div");
    panels.className = `panels ${facets.length === 1 ? "single" : ""} ${this.chart.kind} ${this.chart.kind === "tornado" ? "wide" : ""}`;
    view.append(panels);
    const span = this.span(rows);
    const plots = facets.map((facet) => {
      const panel = document.createElement("div");
      panel.className = "panel";
      if (facet !== undefined) {
        const title = document.createElement("h5");
        title.textContent = valueName(facet, this.chart.facet, LABELS.facets);
        panel.append(title);
      }
      const plot = document.createElement("div");
      plot.className = "plot";
      panel.append(plot);
      panels.append(panel);
      return [plot, facet === undefined ? rows : rows.filter((row) => row[this.chart.facet] === facet)];
    });
    plots.forEach(([plot, part]) => this.plot(plot, part, span));  // when all are there, each has its final width
  }

  controls(rows) {
    const box = document.createElement("div");
    box.className = "controls";
    for (const name of Object.keys(this.picks)) {
      const values = unique(rows, name).filter((value) => value !== null && value !== undefined);
      if (values.length && !values.includes(this.picks[name])) this.picks[name] = values[0];
      if (values.length < 2) continue;
      const label = document.createElement("label");
      label.textContent = `${called(name)} `;
      const select = document.createElement("select");
      for (const value of values) select.append(new Option(valueName(value, ""), String(value), false, value === this.picks[name]));
      select.addEventListener("change", () => { this.picks[name] = values[select.selectedIndex]; this.draw(); });
      label.append(select);
      box.append(label);
    }
    return box;
  }

  series(rows) {
    const found = [];
    for (const color of unique(rows, this.chart.color)) {
      for (const dash of unique(rows, this.chart.dash)) {
        const part = rows.filter((row) => (!this.chart.color || row[this.chart.color] === color) && (!this.chart.dash || row[this.chart.dash] === dash));
        if (part.length) found.push({ color, dash, rows: part, key: `${color}|${dash}` });
      }
    }
    return found;
  }

  tone(color) { return this.colors.get(color) ?? (dark() ? LABELS.dark[0] : LABELS.light[0]); }

  legend(rows) {
    const list = document.createElement("ul");
    list.className = "legend";
    const entries = this.chart.kind === "heat" ? this.outlines() : this.series(rows).filter((one) => one.color !== "base");
    if (entries.length < 2) return list;
    for (const entry of entries) {
      const name = [[entry.color, this.chart.kind === "heat" ? "" : this.chart.color], [entry.dash, this.chart.dash]]
        .filter(([value]) => value !== undefined).map(([value, of]) => valueName(value, of)).join(", ");
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(!this.hidden.has(entry.key)));
      button.innerHTML = this.swatch(entry);
      button.append(name);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(entry.key)) this.hidden.add(entry.key);
        this.draw();
      });
      item.append(button);
      list.append(item);
    }
    return list;
  }

  swatch(entry) {
    const tone = this.chart.kind === "heat" ? entry.tone : this.tone(entry.color);
    const style = { solid: "", dash: "6 3", dot: "2 3", dashdot: "6 2 2 2" }[DASHES[this.dashes.get(entry.dash) ?? 0]];
    if (this.chart.kind === "line" || this.chart.kind === "heat") {
      return `<svg width="26" height="10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="${tone}" stroke-width="2.5" stroke-dasharray="${style}"/></svg>`;
    }
    const round = this.chart.kind === "points" && !(this.dashes.get(entry.dash) ?? 0) ? 6 : 2;
    return `<svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" rx="${round}" fill="${tone}"/></svg>`;
  }

  outlined() {
    return this.chart.outline ? this.filtered(rowsOf(this.id).filter((row) => matches(row, this.chart.outline))) : [];
  }

  outlines() {
    const lines = this.outlined().filter((row) => suits(row, this.picks));
    const values = unique(lines, this.chart.outline_color);
    const tones = colorsOf(values);
    return values.map((value) => ({ color: value, key: String(value), tone: tones.get(value), rows: lines.filter((row) => row[this.chart.outline_color] === value) }));
  }

  // One range for all panels, so that they can be compared.
  span(rows) {
    const { kind, y, log_y: log } = this.chart;
    if (kind === "heat" || kind === "tornado" || kind === "points" || this.chart.own_scale) return undefined;
    let values = rows.map((row) => row[y]);
    if (kind === "stack") {
      const sums = {};
      for (const row of rows) { const key = `${row[this.chart.facet]}|${row[this.chart.x]}`; sums[key] = (sums[key] ?? 0) + row[y]; }
      values = Object.values(sums);
    }
    values = values.filter((value) => value !== null && (!log || value > 0));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return log ? [Math.log10(low) - 0.08, Math.log10(high) + 0.08] : [0, high * 1.06 || 1];
  }

  plot(element, rows, span) {
    const traces = TRACES[this.chart.kind](this, rows);
    Plotly.newPlot(element, traces, this.layout(rows, span), { displayModeBar: false, responsive: true });
    element.on("plotly_click", (event) => {
      const row = event.points.map((point) => point.customdata ?? undefined).find((at) => at !== undefined);
      if (row !== undefined) {
        document.getElementById(this.id).querySelector(".origin").open = true;
        showCommand(this.id, rowsOf(this.id)[row]);
      }
    });
  }

  layout(rows, span) {
    const { chart } = this;
    const axis = { gridcolor: css("--grid"), zerolinecolor: css("--line"), linecolor: css("--line"), automargin: true, tickfont: { size: 10.5 }, fixedrange: true };
    const x = { ...axis, title: { text: chart.x_title ?? "", font: { size: 11 }, standoff: 6 } };
    const y = { ...axis, title: { text: chart.y_title ?? "", font: { size: 11 }, standoff: 4 }, range: span };
    if (chart.category_x || chart.kind === "bars" || chart.kind === "stack" || chart.kind === "heat") x.type = chart.kind === "heat" && !chart.category_x ? "linear" : "category";
    if (chart.log_x) {
      x.type = "log";
      const ticks = [...new Set(rows.map((row) => row[chart.x]))].filter((tick) => tick !== null).sort((a, b) => a - b);
      if (ticks.length <= 12 && (chart.x === "batch" || chart.x === "context")) {
        x.tickvals = ticks;
        x.ticktext = ticks.map((tick) => (tick >= 1024 ? `${tick / 1024}k` : number(tick)));
      } else logTicks(x, rows.map((row) => row[chart.x]));
    }
    if (chart.own_scale) y.rangemode = "tozero";
    if (chart.y === "bytes") { y.tickformat = ".2s"; y.ticksuffix = "B"; }
    if (chart.log_y) { y.type = "log"; logTicks(y, rows.map((row) => row[chart.y])); }
    if (chart.kind === "heat") {
      x.showgrid = y.showgrid = false;
      const values = [...new Set(rows.map((row) => row[chart.x]))];
      if (!chart.category_x) { x.tickvals = values; x.ticktext = values.map(number); x.range = edges(values); }
      y.tickvals = [...new Set(rows.map((row) => row[chart.y]))];
      delete y.range;
    }
    if (chart.lying) {
      x.type = "linear"; x.title.text = chart.y_title; x.range = span;
      y.type = "category"; y.autorange = "reversed"; y.title = undefined; delete y.range;
    }
    if (chart.kind === "tornado") { y.tickfont = { size: 10 }; y.title = undefined; delete y.range; }
    return {
      margin: { l: 44, r: 8, t: 6, b: 36 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--ink"), size: 11, family: "inherit" }, xaxis: x, yaxis: y, showlegend: false, dragmode: false,
      barmode: chart.kind === "stack" ? "stack" : chart.kind === "tornado" ? "overlay" : "group", bargap: 0.25, hovermode: "closest",
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, align: "left" },
    };
  }
}

// 1, 2, 5, 10, in plain numbers.
function logTicks(axis, values) {
  const found = values.filter((value) => value > 0);
  const [low, high] = [Math.min(...found) / 2, Math.max(...found) * 2];
  axis.tickvals = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
    for (const digit of [1, 2, 5]) if (digit * 10 ** power >= low && digit * 10 ** power <= high) axis.tickvals.push(digit * 10 ** power);
  }
  axis.ticktext = axis.tickvals.map((tick) => number(Number(tick.toPrecision(1))));
}

function edges(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const low = (sorted[1] - sorted[0]) / 2;
  const high = (sorted.at(-1) - sorted.at(-2)) / 2;
  return [sorted[0] - low, sorted.at(-1) + high];
}

function common(view, part) {
  const all = rowsOf(view.id);
  return {
    customdata: part.map((row) => all.indexOf(row)),
    text: part.map((row) => hints(view.chart, row)), hovertemplate: "%{text}<extra></extra>", textposition: "none",
  };
}

const LABEL_WIDTH = 22;

// A name beside or under a bar; a long one broken into lines.
function short(value) {
  const name = typeof value === "string" ? valueName(value, "") : String(value);
  const lines = [""];
  for (const word of name.split(" ")) {
    if (lines.at(-1).length + word.length > LABEL_WIDTH) lines.push("");
    lines[lines.length - 1] += `${lines.at(-1) ? " " : ""}${word}`;
  }
  return lines.filter(Boolean).join("<br>");
}

const TRACES = {
  line(view, rows) {
    const { chart } = view;
    return view.series(rows).filter((one) => !view.hidden.has(one.key)).map((one) => {
      const part = [...one.rows].sort((a, b) => a[chart.x] - b[chart.x]);
      return {
        ...common(view, part), type: "scatter", mode: "lines+markers", x: part.map((row) => row[chart.x]), y: part.map((row) => row[chart.y]),
        textposition: undefined, line: { color: view.tone(one.color), width: 2, dash: DASHES[view.dashes.get(one.dash) % 4] }, marker: { size: 5, symbol: SYMBOLS[view.dashes.get(one.dash) % 4] },
      };
    });
  },
  bars(view, rows) {
    const { chart } = view;
    return view.series(rows).filter((one) => !view.hidden.has(one.key)).map((one) => {
      const [names, values] = [one.rows.map((row) => short(row[chart.x])), one.rows.map((row) => row[chart.y])];
      const place = chart.lying ? { orientation: "h", x: values, y: names } : { x: names, y: values };
      return { ...common(view, one.rows), type: "bar", ...place, marker: { color: view.tone(one.color) } };
    });
  },
  stack(view, rows) { return TRACES.bars(view, rows); },
  points(view, rows) {
    const { chart } = view;
    const made = view.series(rows).filter((one) => !view.hidden.has(one.key)).map((one) => ({
      ...common(view, one.rows), textposition: undefined, type: "scatter", mode: "markers", x: one.rows.map((row) => row[chart.x]), y: one.rows.map((row) => row[chart.y]),
      marker: {
        color: view.tone(one.color), size: 9, symbol: SYMBOLS[view.dashes.get(one.dash) % 4],
        line: { color: css("--ink"), width: one.rows.map((row) => (chart.mark && row[chart.mark] ? 2 : 0)) },
      },
    }));
    if (!chart.parity) return made;
    const xs = rows.map((row) => row[chart.x]).filter((value) => value !== null);
    const ends = [Math.min(...xs) * 0.8, Math.max(...xs) * 1.2];
    const line = (factor, more) => ({ type: "scatter", mode: "lines", x: ends, y: ends.map((end) => end * factor), hoverinfo: "skip", line: { color: css("--soft"), width: factor === 1 ? 1 : 0 }, ...more });
    return [line(0.85, {}), line(1.15, { fill: "tonexty", fillcolor: dark() ? "rgba(200,200,200,.12)" : "rgba(90,90,90,.1)" }), line(1, {}), ...made];
  },
  tornado(view, rows) {
    const { chart } = view;
    const base = rows.find((row) => row[chart.color] === "base");
    const reach = {};
    for (const row of rows) if (row !== base) (reach[row[chart.y]] ??= []).push(row[chart.x]);
    const width = (name) => Math.max(...reach[name]) - Math.min(...reach[name]);
    const names = Object.keys(reach).sort((a, b) => width(a) - width(b));
    const bars = view.series(rows).filter((one) => one.color !== "base" && !view.hidden.has(one.key)).map((one) => {
      const part = names.map((name) => one.rows.find((row) => row[chart.y] === name)).filter(Boolean);
      return {
        ...common(view, part), type: "bar", orientation: "h", y: part.map((row) => row[chart.y]), x: part.map((row) => row[chart.x] - base[chart.x]),
        base: base[chart.x], marker: { color: view.tone(one.color), opacity: 0.9 },
      };
    });
    return [...bars, { type: "scatter", mode: "lines", x: [base[chart.x], base[chart.x]], y: [names[0], names.at(-1)], line: { color: css("--ink"), width: 1.5 }, customdata: [rowsOf(view.id).indexOf(base)], text: [hints(chart, base)], hovertemplate: "%{text}<extra></extra>" }];
  },
  heat(view, rows) {
    const { chart } = view;
    const xs = [...new Set(rows.map((row) => row[chart.x]))].sort((a, b) => a - b);
    const ys = [...new Set(rows.map((row) => row[chart.y]))].sort((a, b) => a - b);
    const at = new Map(rows.map((row) => [`${row[chart.x]}|${row[chart.y]}`, row]));
    const all = rowsOf(view.id);
    const cells = ys.map((y) => xs.map((x) => at.get(`${x}|${y}`)));
    const pick = (get) => cells.map((line) => line.map((row) => (row ? get(row) : null)));
    const two = chart.middle !== undefined;
    const heat = {
      type: "heatmap", x: chart.category_x ? xs.map(String) : xs, y: ys, z: pick((row) => (two ? Math.log2(row[chart.z] / chart.middle) : row[chart.z])),
      customdata: pick((row) => all.indexOf(row)), text: pick((row) => hints(chart, row)), hovertemplate: "%{text}<extra></extra>",
      colorscale: two ? DIVERGING : "Viridis", zmin: two ? -2 : 0, zmax: two ? 2 : 1, showscale: false, xgap: 1, ygap: 1,
    };
    const words = { type: "scatter", mode: "text", hoverinfo: "skip", x: [], y: [], text: [], textfont: { size: xs.length > 6 ? 8.5 : 10, color: [] } };
    for (const row of rows) {
      words.x.push(chart.category_x ? String(row[chart.x]) : row[chart.x]);
      words.y.push(row[chart.y]);
      words.text.push(row[chart.z].toFixed(xs.length > 6 ? 1 : 2));
      const bright = two ? Math.abs(Math.log2(row[chart.z])) < 1.4 : row[chart.z] > 0.6;
      words.textfont.color.push(bright ? "#1d1c1a" : "#ffffff");
    }
    const lines = view.outlines().filter((one) => !view.hidden.has(one.key)).map((one) => ({
      ...common(view, one.rows), textposition: undefined, text: one.rows.map((row) => ["model", "bits", "fits_share", "hb_gb"].map((name) => hint(name, row[name])).filter(Boolean).join("<br>")),
      type: "scatter", mode: "lines+markers", x: one.rows.map((row) => row[chart.outline_x]), y: one.rows.map((row) => row[chart.y]),
      line: { color: one.tone, width: 3 }, marker: { size: 5, color: one.tone, line: { color: "#ffffff", width: 1 } },
    }));
    return [heat, words, ...lines];
  },
};

// --- the page ---

const views = [...document.querySelectorAll(".chart")].map((element) => new ChartView(element));
const byElement = new Map(views.map((view) => [view.element, view]));

const inView = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const view = byElement.get(entry.target);
    if (entry.isIntersecting && !view.drawn) view.draw();
  }
}, { rootMargin: "600px" });

const redraw = () => views.filter((view) => view.drawn).forEach((view) => view.draw());

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  redraw();
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
setTheme(prefersDark.matches ? "dark" : "light");
prefersDark.addEventListener("change", () => setTheme(prefersDark.matches ? "dark" : "light"));
document.getElementById("theme").addEventListener("click", () => setTheme(dark() ? "light" : "dark"));
views.forEach((view) => inView.observe(view.element));

for (const select of document.querySelectorAll("[data-filter]")) {
  select.addEventListener("change", () => {
    filters[select.dataset.filter] = select.value;
    redraw();
  });
}

let before;
addEventListener("beforeprint", () => {
  before = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  views.forEach((view) => view.draw());
});
addEventListener("afterprint", () => setTheme(before));

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", () => navigator.clipboard?.writeText(document.querySelector(`[data-command="${button.dataset.copy}"]`).textContent));
}

function csv(id) {
  const names = Object.keys(DATA.figures[id].columns);
  const cell = (value) => (value === null || value === undefined ? "" : /[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  return [names.join(","), ...rowsOf(id).map((row) => names.map((name) => cell(row[name])).join(","))].join("\n") + "\n";
}

for (const button of document.querySelectorAll("[data-csv]")) {
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(button.dataset.csv)], { type: "text/csv" }));
    link.download = `${button.dataset.csv}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
