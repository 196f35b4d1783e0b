"""One page with everything: the picture, its details, the memory plan, the kernels, the graph."""

from __future__ import annotations

import json
from collections.abc import Sequence

from whet.cli.draw.diagram import KINDS, Diagram
from whet.cli.draw.svg import Picture, clean, style

STYLE = """
:root{color-scheme:light dark;--mark:#e0671f;
 --ink:#1c2430;--paper:#fff;--faint:#f3f5f8;--line:#d5dbe3}
@media (prefers-color-scheme:dark){:root{
 --ink:#e6eaf0;--paper:#14181d;--faint:#1d232a;--line:#39424d}}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:var(--paper);
 font:15px/1.5 system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}
header,section{padding:12px 24px}
h1{font-size:22px;margin:8px 0 2px} h2{font-size:17px;margin:12px 0 6px}
p{margin:2px 0 8px;max-width:90ch}
.legend{max-width:none}
.legend span{display:inline-flex;align-items:center;gap:6px;margin-right:18px;font-size:13px}
.view{display:grid;grid-template-columns:minmax(0,1fr) 340px;border-block:1px solid var(--line)}
.canvas{overflow:auto;max-height:82vh;cursor:grab;background:var(--paper)}
.canvas svg{display:block;transform-origin:0 0}
aside{border-left:1px solid var(--line);padding:12px 16px;max-height:82vh;overflow:auto;
 background:var(--faint);font-size:13px}
aside h3{margin:0 0 6px;font-size:15px} dt{font-weight:600;margin-top:8px} dd{margin:0}
dd,pre{white-space:pre-wrap;overflow-wrap:anywhere}
pre,.code dd:last-child{font:12px/1.45 ui-monospace,Menlo,Consolas,monospace}
button{font:inherit;padding:1px 10px;margin-right:4px}
table{border-collapse:collapse;font-size:13px}
th,td{text-align:left;padding:3px 14px 3px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.scroll{overflow:auto;max-height:70vh}
.box{cursor:pointer} .box:hover rect,.box.on rect{stroke-width:3}
.arrow.on .a{stroke:var(--mark);stroke-width:2.4} .arrow.on .h{fill:var(--mark)}
tr[data-key],.held,th{cursor:pointer} tr[data-key]:hover{background:var(--faint)}
@media (max-width:800px){.view{grid-template-columns:1fr}
 aside{border-left:0;border-top:1px solid var(--line)} .canvas,aside{max-height:60vh}}
.held:hover rect{stroke-width:2.4} thead th{position:sticky;top:0;background:var(--paper)}
"""

SCRIPT = """
const details = JSON.parse(document.getElementById('details').textContent);
const canvas = document.querySelector('.canvas'), drawing = canvas.querySelector('svg');
const width = drawing.width.baseVal.value, height = drawing.height.baseVal.value;
let zoom = 1;
function setZoom(value, x = 0, y = 0) {
  const next = Math.min(4, Math.max(0.05, value)), ratio = next / zoom;
  zoom = next;
  drawing.setAttribute('width', width * zoom);
  drawing.setAttribute('height', height * zoom);
  canvas.scrollLeft = (canvas.scrollLeft + x) * ratio - x;
  canvas.scrollTop = (canvas.scrollTop + y) * ratio - y;
}
const fit = () => setZoom(Math.min(canvas.clientWidth / width, canvas.clientHeight / height));
document.getElementById('in').onclick = () => setZoom(zoom * 1.3);
document.getElementById('out').onclick = () => setZoom(zoom / 1.3);
document.getElementById('fit').onclick = fit;
canvas.addEventListener('wheel', event => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault();
  const place = canvas.getBoundingClientRect();
  setZoom(zoom * Math.exp(-event.deltaY / 300), event.clientX - place.x, event.clientY - place.y);
}, {passive: false});
canvas.addEventListener('pointerdown', start => {
  let {clientX: x, clientY: y} = start;
  const move = event => {
    canvas.scrollLeft += x - event.clientX; canvas.scrollTop += y - event.clientY;
    x = event.clientX; y = event.clientY;
  };
  addEventListener('pointermove', move);
  addEventListener('pointerup', () => removeEventListener('pointermove', move), {once: true});
});
function show(key) {
  const [title, rows] = details[key], panel = document.querySelector('aside');
  panel.replaceChildren();
  const add = (tag, text, to) => { const e = document.createElement(tag);
    e.textContent = text; to.append(e); return e; };
  add('h3', title, panel);
  const list = add('dl', '', panel);
  list.className = 'code';
  for (const [name, said] of rows) { add('dt', name, list); add('dd', said, list); }
  for (const e of document.querySelectorAll('.on')) e.classList.remove('on');
  for (const e of document.querySelectorAll('.box'))
    if (e.dataset.key === key) e.classList.add('on');
  for (const e of document.querySelectorAll('.arrow'))
    if (e.dataset.from === key || e.dataset.to === key) e.classList.add('on');
}
for (const e of document.querySelectorAll('.box')) {
  e.addEventListener('mouseenter', () => show(e.dataset.key));
}
for (const e of document.querySelectorAll('tr[data-key], .held')) {
  e.addEventListener('click', () => {
    if (!details[e.dataset.key]) return;
    show(e.dataset.key);
    document.querySelector('.box.on').scrollIntoView({block: 'center', inline: 'center'});
  });
}
for (const head of document.querySelectorAll('th')) {
  head.addEventListener('click', () => {
    const at = head.cellIndex, body = head.closest('table').tBodies[0];
    const number = row => parseFloat(row.cells[at].dataset.number);
    const order = (a, b) => isNaN(number(a))
      ? a.cells[at].textContent.localeCompare(b.cells[at].textContent) : number(b) - number(a);
    const rows = [...body.rows].sort(order);
    if (rows.every((row, n) => row === body.rows[n])) rows.reverse();
    body.append(...rows);
  });
}
if (width > canvas.clientWidth) setZoom(Math.max(0.45, canvas.clientWidth / width));
"""


def page(
    title: str,
    lines: Sequence[str],
    diagram: Diagram,
    picture: Picture,
    charts: Sequence[Picture],
    table: str,
    text: str,
) -> str:
    """The whole page: it loads nothing, so that it can be mailed and opened anywhere."""
    details = {
        key: [box.title, [["is", line] for line in box.lines] if not box.details else box.details]
        for key, box in diagram.boxes.items()
    }
    # A "<" inside a script element could end it, or hide its end.
    data = json.dumps(details).replace("<", "\\u003c")
    legend = "".join(
        f'<span><svg width="14" height="14"><rect class="{kind}" width="13" height="13" x=".5" '
        f'y=".5" rx="3"/></svg>{clean(said)}</span>'
        for kind, said in KINDS.items()
    )
    told = "".join(f"<p>{clean(line)}</p>" for line in lines)
    below = "".join(
        f'<section><div class="scroll">{_inline(chart)}</div></section>' for chart in charts
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>{clean(title)}</title>
<style>{STYLE}{style("svg")}</style></head><body>
<header><h1>{clean(title)}</h1>{told}<p class="legend">{legend}</p>
<button id="in" title="larger">+</button><button id="out" title="smaller">&#8722;</button>
<button id="fit" title="all of it">fit</button></header>
<div class="view"><div class="canvas">{_inline(picture)}</div>
<aside><h3>Details</h3>Point at a box. Drag to move; Ctrl and the wheel zoom.</aside></div>
{below}
<section><h2>In order</h2><p>Click on a head to sort, on a row to see it above.</p>
<div class="scroll">{table}</div></section>
<section><details><summary>As text</summary><div class="scroll"><pre>{clean(text)}</pre></div>
</details></section>
<script type="application/json" id="details">{data}</script>
<script>{SCRIPT}</script></body></html>
"""


def _inline(picture: Picture) -> str:
    return (
        f'<svg width="{picture.width:.0f}" height="{picture.height:.0f}" '
        f'viewBox="0 0 {picture.width:.0f} {picture.height:.0f}">{picture.body}</svg>'
    )
