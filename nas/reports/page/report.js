"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const SYMBOL = {
  evaluated: "circle", off: "circle-open", uniform: "square", random: "diamond", front: "circle", parent: "star",
  "layer-drop": "triangle-up", int8: "x", earlier: "circle",
};
const DASH = {front: "solid", uniform: "dash", random: "dot", earlier: "dashdot"};
const hidden = new Set();
let selected = null;

/* One of several workloads is shown: its costs end in @ and its name. */
let workload = DATA.workloads[0];
const inView = name => !name.includes("@") || name.endsWith("@" + workload);
const isBest = key => !(workload in DATA.fronts) || DATA.fronts[workload].includes(key);
const ofWorkload = cost => workload ? cost + "@" + workload : cost;

const byId = id => document.getElementById(id);
const color = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const tone = kind => color(kind === "off" ? "front" : kind);
const safe = text => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const cost = (point, name) => (DATA.objectives[name] === "maximize" ? -1 : 1) * point.values[name];
const CONFIG = {responsive: true, displaylogo: false, displayModeBar: false};

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function compact(values) {
  return new Set(values).size === 1 ? values[0] + " in each" : values.join(", ");
}

function hover(point) {
  const subnet = Object.entries(point.subnet).map(([name, value]) =>
    name === "layers" ? `${value.length} of ${DATA.layers} layers kept: ${value.join(", ")}`
      : `${name}: ${Array.isArray(value) ? compact(value) : value}`);
  const values = Object.entries(point.text).filter(([name]) => inView(name)).map(([name, text]) => `${name}: ${text}`);
  const state = (point.measured && !point.predicted ? "MEASURED" : "PREDICTED") + " · " + point.source
    + (point.feasible ? "" : " · violates a constraint");
  return `<b>${safe(point.key)}</b> · ${safe(state)}<br>` + [...values, ...subnet].map(safe).join("<br>");
}

/* The points that are not dominated in the two shown objectives, from left to right. */
function staircase(points, x, y) {
  const known = points.filter(p => p.values[x] != null && p.values[y] != null);
  const dominates = (a, b) => cost(a, x) <= cost(b, x) && cost(a, y) <= cost(b, y)
    && (cost(a, x) < cost(b, x) || cost(a, y) < cost(b, y));
  return known.filter(p => !known.some(q => dominates(q, p))).sort((a, b) => a.values[x] - b.values[x]);
}

function hasWebGL() {
  try { return !!document.createElement("canvas").getContext("webgl"); } catch (error) { return false; }
}
const TOUCH = matchMedia("(pointer: coarse)").matches;  // on a touch screen a drag scrolls

/* Thousands of marks go through WebGL; its canvas lies below all others. */
const scatter = points => points.length > 1000 && hasWebGL() ? "scattergl" : "scatter";

function errorBars(points, name, kind) {
  const [thickness, width] = kind === "front" || kind === "parent" ? [1.2, 3] : [0.7, 0];
  return {
    type: "data", array: points.map(p => p.errors[name] ?? 0), visible: kind !== "evaluated", thickness, width,
    color: kind === "front" ? color("front") : undefined,
  };
}

/* Colours of the marks: by source, or a scale over a third value. */
function paints(kind, points, z) {
  if (!z || kind === "parent") return {color: tone(kind)};
  const all = POINTS.map(e => e.p.values[z]).filter(v => v != null);
  return {
    color: points.map(p => p.values[z]), cmin: Math.min(...all), cmax: Math.max(...all),
    colorscale: [[0, color("uniform")], [0.5, color("evaluated")], [1, color("front")]],
    showscale: kind === "front",
    colorbar: {title: {text: safe(z), side: "right"}, thickness: 8, outlinewidth: 0, len: 0.6, exponentformat: "SI"},
  };
}

function traces(series, x, y, z) {
  const {kind, points} = series, paint = tone(kind), faint = kind === "evaluated";
  const base = {visible: !hidden.has(kind), showlegend: false, name: series.name};
  const place = shown => ({x: shown.map(p => p.values[x]), y: shown.map(p => p.values[y])});
  const lines = [];
  if (DASH[kind] && x !== y && x in DATA.objectives && y in DATA.objectives) {
    const shape = DATA.objectives[x] === "minimize" ? "hv" : "vh";
    const line = {shape, color: paint, width: kind === "front" ? 2 : 1.2, dash: DASH[kind]};
    lines.push({...base, ...place(staircase(points, x, y)), type: "scatter", mode: "lines", line, hoverinfo: "skip"});
  }
  const size = {evaluated: 4, off: 8, parent: 14, front: 10, uniform: 7, random: 8, "layer-drop": 9, int8: 8, earlier: 7}[kind];
  return [...lines, {
    ...base, ...place(points), mode: "markers", customdata: points.map(p => p.key), meta: kind,
    type: scatter(points),
    marker: {symbol: SYMBOL[kind], size, opacity: faint ? 0.4 : kind === "front" ? points.map(p => isBest(p.key) ? 1 : 0.3) : 1, ...paints(kind, points, z)},
    error_x: errorBars(points, x, kind), error_y: errorBars(points, y, kind),
    text: points.map(p => p.hover ??= hover(p)), hovertemplate: "%{text}<extra></extra>",
  }];
}

function boundShapes(x, y) {
  const shapes = [], annotations = [];
  for (const bound of DATA.constraints) {
    const line = {color: color("bound"), width: 1.2, dash: "dash"};
    const font = {color: color("bound"), size: 12};
    const label = {text: safe(bound.name + " " + bound.text), showarrow: false, font};
    if (bound.name === x) {
      shapes.push({type: "line", x0: bound.value, x1: bound.value, yref: "paper", y0: 0, y1: 1, line});
      annotations.push({...label, x: bound.value, yref: "paper", y: 1, yanchor: "bottom"});
    }
    if (bound.name === y) {
      shapes.push({type: "line", y0: bound.value, y1: bound.value, xref: "paper", x0: 0, x1: 1, line});
      annotations.push({...label, y: bound.value, xref: "paper", x: 1, xanchor: "right", yanchor: "bottom"});
    }
  }
  return {shapes, annotations};
}

function axis(name) {
  return {
    title: {text: safe(name), standoff: 8, font: {color: color("quiet"), size: 13}}, gridcolor: color("rule"),
    zeroline: false, linecolor: color("rule"), tickfont: {color: color("quiet")}, automargin: true,
    exponentformat: "SI", nticks: 8,
  };
}

function frame(x, y) {
  return {
    xaxis: axis(x), yaxis: axis(y), hovermode: "closest", showlegend: false,
    dragmode: TOUCH ? false : "zoom", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: {l: 20, r: 12, t: 28, b: 20},
    font: {color: color("ink"), family: getComputedStyle(document.body).fontFamily, size: 12.5},
    hoverlabel: {align: "left", bgcolor: color("panel"), bordercolor: color("rule"), font: {color: color("ink")}},
  };
}

/* Draws the chart and returns a promise; without the evaluated points it is on the screen sooner. */
function draw(cloud = true) {
  if (!window.Plotly) return;
  const x = byId("x").value, y = byId("y").value, z = byId("z").value;
  const ring = selected && selected.values[x] != null && selected.values[y] != null
    ? {x: [selected.values[x]], y: [selected.values[y]]} : {x: [], y: []};
  const bars = name => ({...errorBars(selected ? [selected] : [], name, "ring"), color: color("quiet")});
  const ringTrace = {
    ...ring, error_x: bars(x), error_y: bars(y), type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip",
    marker: {symbol: "circle-open", size: 20, color: color("ink"), line: {width: 1.5}},
  };
  const layout = {...frame(x, y), ...boundShapes(x, y), uirevision: x + "/" + y};
  const shown = DATA.series.filter(series => cloud || series.kind !== "evaluated");
  return Plotly.react("plot", [...shown.flatMap(series => traces(series, x, y, z)), ringTrace], layout, CONFIG);
}

function swatch(kind) {
  const mark = {
    evaluated: '<circle cx="12" cy="8" r="2.5" fill="C" opacity=".6"/>',
    off: '<circle cx="12" cy="8" r="4" fill="none" stroke="C" stroke-width="1.5"/>',
    uniform: '<path d="M0 8H24" stroke="C" stroke-dasharray="4 2"/><path d="M9 5h6v6H9z" fill="C"/>',
    random: '<path d="M0 8H24" stroke="C" stroke-dasharray="1 2"/><path d="M12 4l4 4-4 4-4-4z" fill="C"/>',
    "layer-drop": '<path d="M12 3l5 10H7z" fill="C"/>',
    int8: '<path d="M8 4l8 8M16 4l-8 8" stroke="C" stroke-width="2.5"/>',
    earlier: '<path d="M0 8H24" stroke="C" stroke-dasharray="6 2 1 2"/><circle cx="12" cy="8" r="3.5" fill="C"/>',
    front: '<path d="M0 8H24" stroke="C" stroke-width="2"/><circle cx="12" cy="8" r="4.5" fill="C"/>',
    parent: '<path d="M12 0l2.3 5.3 5.7.5-4.3 3.8 1.3 5.6-5-3-5 3 1.3-5.6L4 5.8l5.7-.5z" fill="C"/>',
  }[kind];
  const span = element("span", {"aria-hidden": "true"});
  const paint = `var(--${kind === "off" ? "front" : kind})`;
  span.innerHTML = `<svg viewBox="0 0 24 16">${mark.replaceAll("C\"", paint + "\"")}</svg>`;
  return span.firstChild;
}

function legend() {
  for (const {kind, name, points} of DATA.series) {
    const label = points.length > 1 ? `${name} · ${points.length.toLocaleString("en")}` : name;
    const button = element("button", {type: "button", "aria-pressed": "true"}, swatch(kind), label);
    button.addEventListener("click", () => {
      if (!hidden.delete(kind)) hidden.add(kind);
      button.setAttribute("aria-pressed", String(!hidden.has(kind)));
      draw();
    });
    byId("legend").append(element("li", {}, button));
  }
}

const breakable = name => name.replaceAll("_", "_\u200b");

/* Fields with one value per layer. */
const layered = subnet => Object.keys(subnet).filter(name => name !== "layers" && Array.isArray(subnet[name]));

/* One row per layer of the parent: a bar for each value of a kept layer, an empty row for a dropped one. */
function layerPicture(subnet) {
  const fields = layered(subnet);
  const grid = element("div", {class: "layers"}, element("span"),
    ...fields.map(name => element("span", {class: "quiet"}, breakable(name))));
  grid.style.gridTemplateColumns = `auto repeat(${fields.length}, minmax(0, 1fr))`;
  for (let layer = 0; layer < DATA.layers; layer++) {
    const i = subnet.layers.indexOf(layer);
    grid.append(element("span", {class: "quiet"}, "layer " + layer));
    for (const field of fields) {
      const value = i < 0 ? null : subnet[field][i];
      const bar = element("div", {class: i < 0 || value === 0 ? "bar none" : "bar"});
      if (value && Number.isFinite(value) && WIDEST[field]) {
        const fill = element("i");
        fill.style.width = 100 * value / WIDEST[field] + "%";
        bar.append(fill);
      }
      bar.append(element("span", {}, i < 0 ? "dropped" : value === 0 ? "skipped" : String(value)));
      grid.append(bar);
    }
  }
  return grid;
}

function copy(text, button) {
  const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500); };
  const byHand = () => {
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    done();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, byHand); else byHand();
}

function exportCommand(point) {
  if (point.source === "parent") return element("p", {class: "quiet"}, "The parent is already a model folder of the run.");
  const command = DATA.export_command.replaceAll("{key}", point.key);
  const button = element("button", {type: "button"}, "Copy");
  button.addEventListener("click", () => copy(command, button));
  return element("div", {class: "command"}, element("code", {}, command), button);
}

function show(point) {
  selected = point;
  const measured = point.measured && !point.predicted;
  const values = Object.entries(point.text).filter(([n]) => inView(n)).flatMap(([n, t]) => [element("dt", {}, n), element("dd", {}, t)]);
  const scalars = Object.entries(point.subnet).filter(([, v]) => !Array.isArray(v))
    .flatMap(([n, v]) => [element("dt", {}, n), element("dd", {}, String(v))]);
  const knee = point.key === DATA.selected ? " · knee of the front" : "";
  const heading = element("h3", {}, element("span", {class: "key"}, point.key),
    element("span", {class: measured ? "badge" : "badge predicted"}, measured ? "measured" : "predicted"),
    element("span", {class: "quiet"}, ` ${point.source}${knee}${point.feasible ? "" : " · violates a constraint"}`));
  byId("panel").replaceChildren(heading,
    element("dl", {class: "values"}, ...values, ...scalars),
    element("h4", {}, `${point.subnet.layers.length} of ${DATA.layers} layers`),
    layerPicture(point.subnet), element("h4", {}, "Export"), exportCommand(point));
  for (const row of document.querySelectorAll("tr[data-key]"))
    row.setAttribute("aria-selected", String(row.dataset.key === point.key));
  draw();
}

const POINTS = DATA.series.flatMap(s => s.points.map(p => ({kind: s.kind, p})));
const find = (key, kind) => (POINTS.find(e => e.p.key === key && e.kind === kind) || {}).p;
const WIDEST = {};
for (const {p} of POINTS)
  for (const [name, values] of Object.entries(p.subnet))
    for (const value of Array.isArray(values) ? values : [])
      if (Number.isFinite(value)) WIDEST[name] = Math.max(WIDEST[name] || 0, value);

/* The metric of the knee and that of the parent. */
function metricNote(knee, parent) {
  const metric = byId("y").value, [ofKnee, ofParent] = [knee, parent].map(p => p.text[metric]?.split(" ± ")[0]);
  return ofKnee && ofParent && !metric.startsWith("latency_ms") ? `, with ${metric} ${ofKnee} instead of ${ofParent}` : "";
}

/* The knee compared with its parent: values in the headline, speed-up in one sentence. */
function summary() {
  const knee = DATA.selected && find(DATA.selected, "front"), parent = POINTS.find(e => e.kind === "parent")?.p;
  byId("headline").replaceChildren();
  byId("summary").replaceChildren();
  if (!knee) return;
  for (const name of DATA.value_names) {
    if (knee.text[name] == null || !inView(name)) continue;
    const [value, error] = knee.text[name].split(" ± ");
    const reference = parent?.text[name] ? `parent ${parent.text[name].split(" ± ")[0]}` : "";
    const note = [error && "± " + error, reference].filter(Boolean).join(" · ");
    byId("headline").append(element("div", {}, element("dt", {}, name), element("dd", {}, value, element("small", {}, note))));
  }
  if (workload in DATA.fronts) {
    const best = DATA.fronts[workload].length, all = DATA.series.find(s => s.kind === "front").points.length;
    byId("summary").append(`Under the workload ${workload}, ${best} of the ${all} models of the front are best; the `
      + "others are pale. ");
  }
  const latency = ofWorkload("latency_ms");
  if (parent && knee.values[latency] && parent.values[latency]) {
    const times = parent.values[latency] / knee.values[latency];
    byId("summary").append("The knee of the front, ", element("b", {class: "key"}, knee.key), ", is ",
      element("b", {}, times >= 1 ? times.toFixed(1) + " times faster" : (1 / times).toFixed(1) + " times slower"),
      ` than its parent${workload ? " under the workload " + workload : ""}, both measured${metricNote(knee, parent)}.`);
  }
}

/* Shows what belongs to one workload: its costs on the axes, in the tables and the panel, and its facts. */
function switchWorkload(name) {
  workload = name;
  for (const id of ["x", "y", "z"]) {
    const other = ofWorkload(byId(id).value.split("@")[0]);
    if (!inView(byId(id).value) && DATA.value_names.includes(other)) byId(id).value = other;
  }
  for (const fact of document.querySelectorAll("[data-workload]")) fact.hidden = fact.dataset.workload !== name;
  for (const table of document.querySelectorAll(".scroll table")) {
    const shown = [...table.querySelectorAll("th")].map(cell => inView(cell.textContent));
    for (const row of table.rows) [...row.cells].forEach((cell, i) => { cell.hidden = !shown[i]; });
  }
  for (const row of document.querySelectorAll("tr[data-key]")) row.classList.toggle("pale", !isBest(row.dataset.key));
  for (const {p} of POINTS) delete p.hover;
  summary();
  if (selected) show(selected); else draw();
  if (byId("predicted")?.dataset.drawn) CHARTS.predicted();
}

for (const id of ["x", "y", "z"]) {
  for (const name of DATA.value_names) byId(id).append(element("option", {value: name}, name));
  byId(id).addEventListener("change", () => draw());
}
const names = Object.keys(DATA.objectives);
byId("x").value = names.find(n => DATA.objectives[n] === "minimize") || names[0];
byId("y").value = names.find(n => n !== byId("x").value && DATA.objectives[n] === "maximize")
  || names.find(n => n !== byId("x").value) || DATA.value_names.find(n => n !== byId("x").value) || names[0];
byId("z").value = names.find(n => n !== byId("x").value && n !== byId("y").value && inView(n)) || "";
for (const name of DATA.workloads) byId("workload").append(element("option", {value: name}, name));
byId("workload").addEventListener("change", () => switchWorkload(byId("workload").value));
byId("switch").hidden = DATA.workloads.length < 2;
legend();
summary();
if (DATA.selected) show(find(DATA.selected, "front"));
if (DATA.workloads.length > 1) switchWorkload(workload);
for (const row of document.querySelectorAll("tr[data-key]")) {
  const open = () => { show(find(row.dataset.key, "front")); byId("panel").scrollIntoView({block: "nearest"}); };
  row.tabIndex = 0;
  row.addEventListener("click", open);
  row.addEventListener("keydown", event => { if (event.key === "Enter") open(); });
}

const painted = () => new Promise(done => requestAnimationFrame(() => setTimeout(done)));

/* Loading the chart library takes longest, so the text is shown first, then the front, then all evaluated points. */
async function startCharts() {
  await painted();
  document.head.append(element("script", {}, byId("plotly").textContent));
  await draw(false);
  performance.mark("drawn");
  await painted();
  await draw();
  byId("plot").on("plotly_click", event => {
    const hit = event.points.find(p => p.customdata);
    if (hit) show(find(hit.customdata, hit.data.meta));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  watchHistory();
  performance.mark("ready");
  document.documentElement.dataset.ready = "true";
}
performance.mark("shown");
startCharts();
