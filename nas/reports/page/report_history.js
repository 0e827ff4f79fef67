/* Below the front: all metrics and costs, parameter importance, history. Charts are drawn when first visible. */
const HISTORY = DATA.history;

function parallel() {
  const evaluated = DATA.series.find(s => s.kind === "evaluated") || DATA.series[0];
  const points = evaluated ? evaluated.points : [];
  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  const numbers = name => points.map(p => {
    const value = p.subnet[name];
    return Array.isArray(value) ? (value.every(Number.isFinite) ? mean(value) : null) : value;
  });
  const columns = [["layers kept", points.map(p => p.subnet.layers.length)]];
  const fields = new Set(points.flatMap(p => Object.keys(p.subnet).filter(name => name !== "layers")));
  for (const name of fields) columns.push([Array.isArray(points[0].subnet[name]) ? "mean " + name : name, numbers(name)]);
  for (const name of DATA.value_names) columns.push([name, points.map(p => p.values[name])]);
  const shown = columns.filter(([, values]) => new Set(values).size > 1 && values.every(v => Number.isFinite(v)));
  if (!shown.length) return byId("all").remove();
  const dimensions = shown.map(([name, values]) => ({label: safe(name).replace("mean ", "mean<br>"), values}));
  const metric = byId("y").value, order = points.map((_, i) => i).sort((a, b) => cost(points[b], metric) - cost(points[a], metric));
  const paint = [];
  order.forEach((i, rank) => { paint[i] = rank; });
  const layout = {
    ...frame("", ""), margin: {l: 70, r: 50, t: 56, b: 20}, font: {...frame("", "").font, size: 11.5},
  };
  Plotly.react("parallel", [{
    type: "parcoords", dimensions, labelangle: 0,
    line: {color: paint, colorscale: [[0, color("rule")], [0.75, color("evaluated")], [1, color("front")]]},
    unselected: {line: {color: color("rule"), opacity: 0.15}},
    labelfont: {color: color("quiet"), size: 11}, tickfont: {color: color("quiet"), size: 10},
    rangefont: {color: "rgba(0,0,0,0)"},
  }], layout, {...CONFIG, responsive: true});
}

/* One row per field with its total share; a field that varies by layer has one cell per layer. */
function importance() {
  const shares = HISTORY.importance[byId("objective").value], fields = {};
  for (const [parameter, share] of Object.entries(shares)) {
    const [field, layer] = parameter.split(/\.(?=\d+$)/);
    (fields[field] ??= []).push([layer, share]);
  }
  const most = Math.max(...Object.values(shares)) || 1, grid = element("div", {class: "matter"});
  const total = entries => entries.reduce((sum, [, share]) => sum + share, 0);
  for (const [field, entries] of Object.entries(fields).sort((a, b) => total(b[1]) - total(a[1]))) {
    const cells = element("div", {class: "cells"});
    for (const [layer, share] of entries.sort((a, b) => a[0] - b[0])) {
      const fill = element("i");
      fill.style.opacity = 0.85 * Math.sqrt(share / most);
      const title = `${field}${layer === undefined ? "" : ` of layer ${layer}`}: ${(100 * share).toFixed(1)} %`;
      cells.append(element("span", {title}, fill, element("b", {}, layer ?? "")));
    }
    grid.append(element("span", {class: "name"}, breakable(field)),
      element("span", {class: "share"}, (100 * total(entries)).toFixed(0) + " %"), cells);
  }
  byId("importance").replaceChildren(grid);
}

function growth() {
  const seconds = byId("clock").value === "seconds";
  const kinds = {search: "front", uniform: "uniform", random: "random"}, kind = curve => kinds[curve.study] ?? "front";
  const lines = HISTORY.growth.curves.filter(c => c.hypervolume.length).map(curve => ({
    type: "scatter", mode: "lines", name: curve.study, y: curve.hypervolume,
    x: seconds ? curve.seconds : curve.hypervolume.map((_, i) => i + 1),
    opacity: curve.study in kinds ? 1 : 0.45,
    line: {shape: "hv", color: color(kind(curve)), dash: DASH[kind(curve)], width: curve.study === "search" ? 2 : 1.4},
    hovertemplate: `${curve.study}: %{y:.4g} at %{x}<extra></extra>`,
  }));
  const layout = {...frame(seconds ? "seconds since its first evaluation" : "evaluations", ""), showlegend: true};
  layout.legend = {orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: {color: color("quiet")}};
  Plotly.react("growth", lines, layout, CONFIG);
}

function predicted() {
  const {predicted_ms, measured_ms, key} = HISTORY.predictor[workload], all = [...predicted_ms, ...measured_ms];
  const ends = [Math.min(...all), Math.max(...all)];
  const layout = {...frame("measured latency_ms", "predicted latency_ms")};
  layout.margin.t = 12;
  heldOut(HISTORY.predictor[workload]);
  Plotly.react("predicted", [
    {type: "scatter", mode: "lines", x: ends, y: ends, line: {color: color("rule"), width: 1.5}, hoverinfo: "skip"},
    {type: "scatter", mode: "markers", x: measured_ms, y: predicted_ms, text: key, marker: {color: color("front"), size: 7},
      hovertemplate: "%{text}<br>measured %{x:.3g} ms<br>predicted %{y:.3g} ms<extra></extra>"},
  ], layout, CONFIG);
}

/* The error of a predictor on held-out measurements beside those of its baselines. */
function heldOut({model, mape_percent}) {
  const errors = Object.entries(mape_percent).map(([name, error]) =>
    element("span", {}, name === model ? element("b", {}, name) : name, ` ${error.toFixed(1)} %`));
  byId("mape")?.replaceChildren(element("span", {}, "Held-out error"), ...errors);
}

function losses(stage) {
  const {step, loss} = HISTORY.training[stage];
  const layout = {...frame("step", "loss")};
  layout.margin.t = 12;
  Plotly.react(stage, [{type: "scatter", mode: "lines", x: step, y: loss, line: {color: color("front"), width: 1.6},
    hovertemplate: "step %{x}: loss %{y:.4g}<extra></extra>"}], layout, CONFIG);
}

const CHARTS = {parallel, growth, predicted, supernet: () => losses("supernet"), parent: () => losses("parent")};
const available = {
  growth: HISTORY.growth?.curves.length, predicted: HISTORY.predictor?.[workload]?.key.length,
  supernet: HISTORY.training?.supernet?.step.length, parent: HISTORY.training?.parent?.step.length, parallel: POINTS.length,
};
for (const [name, known] of Object.entries(available))
  if (!known) byId(name === "parallel" ? "all" : name + "-card").remove();
if (!document.querySelector("#history .card")) byId("history").remove();
if (HISTORY.growth && byId("reference")) {
  const corner = Object.entries(HISTORY.growth.reference).map(([name, value]) => `${name} ${Number(value.toPrecision(4))}`);
  byId("reference").textContent = `Of evaluated points, with predicted latency. Reference point: ${corner.join(", ")}.`;
}
if (HISTORY.predictor?.[workload]) heldOut(HISTORY.predictor[workload]);
if (Object.keys(HISTORY.importance || {}).length) {
  for (const name of Object.keys(HISTORY.importance)) byId("objective").append(element("option", {value: name}, name));
  byId("objective").addEventListener("change", importance);
  importance();
} else byId("dimensions").remove();
byId("clock")?.addEventListener("change", () => window.Plotly && growth());

function watchHistory() {
  const seen = new IntersectionObserver(entries => {
    for (const {isIntersecting, target} of entries) if (isIntersecting) {
      seen.unobserve(target);
      CHARTS[target.id]();
      target.dataset.drawn = "true";
    }
  }, {rootMargin: "200px"});
  document.querySelectorAll(".lazy").forEach(node => seen.observe(node));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    document.querySelectorAll(".lazy[data-drawn]").forEach(node => CHARTS[node.id]());
  });
}
