"""The page's style and script: all of both is here, and the page's policy admits nothing else."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--paper:#fff;--panel:#f6f8fa;
--blue:#0969da;--orange:#9a4b00;--green:#116329;--mark:#fff3c4}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--line:#3d444d;--paper:#0d1117;--panel:#161b22;
--blue:#6cb6ff;--orange:#f0a45d;--green:#7ee787;--mark:#4a3a00}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:62rem;padding:1rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif}
h1,p,li,dd{overflow-wrap:anywhere}h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}
a{color:var(--blue)}:focus-visible{outline:3px solid var(--blue);outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{position:static}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;padding:0;list-style:none}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.5rem;margin:1rem 0}
.cards div{background:var(--panel);border:1px solid var(--line);border-radius:.4rem;padding:.5rem .75rem}
.cards dt{color:var(--soft);font-size:.85rem}.cards dd{margin:0;font-size:1.15rem;overflow-wrap:anywhere}
.wide{overflow-x:auto;max-width:100%}.wide>svg{min-width:34rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.5rem 0}
caption{text-align:left;color:var(--soft);padding:.25rem 0}
th,td{border-bottom:1px solid var(--line);padding:.25rem .5rem;text-align:left;vertical-align:top}
thead th{white-space:nowrap}tbody th{font-weight:600;overflow-wrap:anywhere;min-width:3rem}
.names tbody th{min-width:10.5rem}#nodes tbody th{min-width:3rem}td:last-child{min-width:9rem}
td.note{min-width:16rem;max-width:40rem}
td{font-variant-numeric:tabular-nums}tr:has(:target){background:var(--mark)}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:3px solid var(--blue)}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
code,pre{font-family:ui-monospace,monospace;font-size:.85rem}
pre{background:var(--panel);border:1px solid var(--line);padding:.5rem;white-space:pre-wrap;overflow-wrap:anywhere}
code{overflow-wrap:anywhere}
svg{width:100%;height:auto;max-width:40rem;display:block}svg.tree{max-width:26rem}svg.small{width:80px}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft)}
svg .axis{stroke:var(--line);fill:none}svg .blue{fill:var(--blue);stroke:var(--blue)}
svg .orange{fill:var(--orange);stroke:var(--orange)}svg .green{fill:var(--green);stroke:var(--green)}
svg .line{fill:none;stroke-width:2}svg .dash{stroke-dasharray:5 4}
svg .box{fill:var(--panel);stroke:var(--line)}svg .edge{stroke:var(--soft);fill:none}
svg a:hover .box,svg a:focus .box{stroke:var(--blue);stroke-width:2}
summary{cursor:pointer;color:var(--blue)}
footer{margin-top:2rem;border-top:1px solid var(--line);color:var(--soft);font-size:.85rem}
@media print{nav,.skip{display:none}}
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const heads = table.querySelectorAll("thead th");
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].textContent;
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)], [m, n] = [parseFloat(x), parseFloat(y)];
        if (Number.isNaN(m) || Number.isNaN(n)) {
          return Number.isNaN(m) && Number.isNaN(n) ? x.localeCompare(y) : Number.isNaN(m) ? 1 : -1;
        }
        return down ? n - m : m - n;
      };
      const body = table.tBodies[0];
      const rows = Array.from(body.rows).sort(order);
      body.append(...rows);
    });
  });
}
"""


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


#: No request leaves the page, and no script or style runs that is not the one above.
POLICY = (
    f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; img-src data:; base-uri 'none'; "
    "form-action 'none'"
)
