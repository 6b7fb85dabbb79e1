"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 40rem)");

function look() {
  const style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--ink").trim(), grid = style.getPropertyValue("--grid").trim();
  const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickcolor: grid };
  return { font: { family: "system-ui, sans-serif", size: narrow.matches ? 11 : 13, color: ink }, axis,
    hoverlabel: { bgcolor: style.getPropertyValue("--card").trim(), font: { color: ink } } };
}

function dressed(layout) {
  const { font, axis, hoverlabel } = look(), copy = structuredClone(layout);
  Object.assign(copy, { font, hoverlabel });
  for (const name of Object.keys(copy)) if (/^[xy]axis\d*$/.test(name)) copy[name] = { ...axis, ...copy[name] };
  if (narrow.matches) copy.margin = { ...copy.margin, l: 45, r: 16 };
  return copy;
}

function draw(name) {
  const { data: traces, layout } = data.figures[name], place = document.getElementById(`plot-${name}`);
  const fresh = !place.classList.contains("js-plotly-plot");
  place.style.height = `${layout.height}px`;  // plotly's own is "100 %" once the window was resized
  Plotly.react(place, structuredClone(traces), dressed(layout), { responsive: true, displayModeBar: false });
  if (fresh) place.on("plotly_click", event => {
    const key = event.points.map(point => point.customdata).find(key => key in data.trials);
    if (key) pick(key);
  });
}
const drawAll = () => Object.keys(data.figures).forEach(draw);
drawAll();
dark.addEventListener("change", drawAll);
narrow.addEventListener("change", drawAll);

const rows = [...document.querySelectorAll("#trials tbody tr")];
const picked = document.getElementById("picked"), command = document.getElementById("picked-command");
let opener = null;

function pick(key) {
  const trial = data.trials[key];
  for (const row of rows) row.setAttribute("aria-selected", String(row.dataset.key === key));
  document.getElementById("picked-name").textContent = trial.name;
  command.textContent = trial.command;
  document.getElementById("copied").textContent = "";
  picked.hidden = false;
}

function focusRow(row) {
  rows.forEach(other => { other.tabIndex = -1; });
  row.tabIndex = 0;
  row.focus();
}

rows.forEach((row, at) => {
  row.addEventListener("click", () => { opener = row; focusRow(row); pick(row.dataset.key); });
  row.addEventListener("keydown", event => {
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to !== undefined && rows[to]) { event.preventDefault(); focusRow(rows[to]); }
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault(); opener = row; pick(row.dataset.key); document.getElementById("copy").focus();
    }
  });
});

function close() { picked.hidden = true; if (opener) opener.focus(); }
document.getElementById("close").addEventListener("click", close);
document.addEventListener("keydown", event => { if (event.key === "Escape" && !picked.hidden) close(); });

document.getElementById("copy").addEventListener("click", async () => {
  let done = true;
  try { await navigator.clipboard.writeText(command.textContent); } catch {
    getSelection().selectAllChildren(command);
    done = document.execCommand("copy");
  }
  document.getElementById("copied").textContent = done ? "Copied." : "Select the command and copy it.";
});

if (document.body.dataset.live) setInterval(async () => {
  try {
    const now = await (await fetch("state")).text();
    if (now !== document.body.dataset.live && picked.hidden) location.reload();
  } catch { /* the server has ended; the page stays */ }
}, 3000);
