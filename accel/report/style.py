"""The inline style sheet and the table-sorting script of every page."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--text:#1c2128;--muted:#59636e;--back:#fff;--panel:#f6f8fa;
--line:#d1d9e0;--grid:#e6eaee;--good:#1a7f37;--bad:#c6202b;--good-back:#e6f6ea;--bad-back:#fdeceb;
--warn:#8a5a00;--warn-back:#fff5dc;
--s0:#0969da;--s1:#d1590a;--s2:#59636e;--s3:#1a7f37;--s4:#8250df;--s5:#b3196e}
@media (prefers-color-scheme:dark){:root{--text:#e6edf3;--muted:#9aa4af;--back:#0f1319;
--panel:#181d24;--line:#343c46;--grid:#262d36;--good:#4ac26b;--bad:#ff7b72;--good-back:#10291a;
--bad-back:#341519;--warn:#e3b341;--warn-back:#2c2411;--s0:#58a6ff;--s1:#f0883e;--s2:#9aa4af;--s3:#4ac26b;--s4:#bc8cff;--s5:#f778ba}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:1.55rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.1rem;margin:32px 0 10px}
p{margin:8px 0;max-width:80ch}
.subtitle{color:var(--muted);margin:0 0 16px}
code,td,dd{font-variant-numeric:tabular-nums}
.verdict{display:flex;gap:12px;align-items:baseline;margin:16px 0;padding:14px 18px;
border-left:5px solid;border-radius:4px;font-size:1.1rem;overflow-wrap:anywhere}
.verdict .mark{font-weight:700}
.verdict.good{border-color:var(--good);background:var(--good-back)}
.verdict.bad{border-color:var(--bad);background:var(--bad-back)}
.verdict.good .mark{color:var(--good)}.verdict.bad .mark{color:var(--bad)}
.badge{margin-right:4px;display:inline-block;padding:0 8px;border:1px solid;
border-radius:10px;font-size:.82rem;white-space:nowrap}
.badge.warn{color:var(--warn)}
.badge.good{color:var(--good)}.badge.bad{color:var(--bad)}.badge.neutral{color:var(--muted)}
.scroll+.scroll{margin-top:8px}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{padding:5px 10px;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
tbody>tr:last-child>*{border-bottom:0}
th{background:var(--panel);white-space:nowrap;font-weight:600}
th.number{text-align:right}
td.long{min-width:240px;overflow-wrap:anywhere}
td.number{text-align:right;white-space:nowrap}
tr.bad>td,tbody>tr.bad>th{background:var(--bad-back)}
table.sortable th{cursor:pointer}
table.sortable th[aria-sort=ascending]::after{content:" \\2191"}
table.sortable th[aria-sort=descending]::after{content:" \\2193"}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:8px 0;font-size:.9rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
figure{margin:0}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--text,#1c2128);font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg text.muted{fill:var(--muted,#59636e)}
caption{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
tbody>tr>th{background:none;white-space:normal;font-weight:inherit}
ul{margin:8px 0;padding-left:1.3em}li{margin:3px 0;max-width:90ch;overflow-wrap:anywhere}
a{color:var(--s0)}
:focus-visible{outline:2px solid var(--s0);outline-offset:1px}
.headline{margin:16px 0;padding:12px 18px;border:1px solid var(--line);border-left-width:6px;
border-radius:6px;background:var(--panel);overflow-wrap:anywhere}
.headline>p:first-child{font-size:1.12rem;line-height:1.45;max-width:none}
.headline .label{display:inline-block;padding:1px 10px;margin-right:6px;border-radius:4px;
color:var(--back);background:var(--muted);font-size:.82rem;font-weight:700;
text-transform:uppercase;letter-spacing:.03em;vertical-align:.1em}
.headline.good{border-color:var(--good);background:var(--good-back)}
.headline.bad{border-color:var(--bad);background:var(--bad-back)}
.headline.warn{border-color:var(--warn);background:var(--warn-back)}
.headline.good .label{background:var(--good)}.headline.bad .label{background:var(--bad)}
.headline.warn .label{background:var(--warn)}
.figures{display:flex;flex-wrap:wrap;gap:8px;margin:16px 0}
.figure{flex:1 1 118px;padding:8px 12px;border:1px solid var(--line);border-radius:6px}
.figure b{display:block;font-size:1.35rem;line-height:1.3;font-variant-numeric:tabular-nums}
.figure span{color:var(--muted);font-size:.84rem}
.figure.bad b{color:var(--bad)}.figure.warn b{color:var(--warn)}.figure.good b{color:var(--good)}
.contents{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.9rem;margin:8px 0 0}
details{margin:8px 0;border:1px solid var(--line);border-radius:6px;padding:0 14px}
details[open]{padding-bottom:12px}
summary{cursor:pointer;padding:8px 0;overflow-wrap:anywhere}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.86rem;line-height:1.45}
code,pre{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{font-size:.92em;overflow-wrap:anywhere}
pre code{font-size:1em}
.copyable{display:flex;gap:10px;align-items:flex-start;margin:8px 0;padding:10px 12px;
background:var(--panel);border:1px solid var(--line);border-radius:6px}
.copyable pre{flex:1;min-width:0}
button,input,select{font:inherit;font-size:.86rem;color:var(--text);background:var(--back);
border:1px solid var(--line);border-radius:5px;padding:3px 10px}
button{cursor:pointer}button:hover{background:var(--panel)}
.drawing{overflow-x:auto}.drawing svg{min-width:820px}
@media(max-width:600px){main{padding:16px 12px 32px}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:6px}h1{font-size:1.3rem}}
@media print{:root{--text:#000;--muted:#444;--back:#fff;--panel:#f6f8fa;--line:#bbb;--grid:#e6eaee;
--good:#1a7f37;--bad:#c6202b;--warn:#8a5a00;--good-back:#fff;--bad-back:#fff;--warn-back:#fff;
--s0:#0969da;--s1:#d1590a;--s2:#59636e;color-scheme:light}
main{max-width:none;padding:0}.contents,.copy{display:none}.scroll,.drawing{overflow:visible}
.drawing svg{min-width:0}table{font-size:.7rem}th,td{padding:3px 5px}
figure,tr,.headline{break-inside:avoid}h2{break-after:avoid}}
"""

SCRIPT = """
document.querySelectorAll("table.sortable").forEach(table=>{
const body=table.tBodies[0];
const key=(row,i)=>{const c=row.cells[i];const s=c.dataset.sort;
if(s===undefined)return c.textContent;
const n=s==="inf"?Infinity:s==="-inf"?-Infinity:Number(s);return Number.isNaN(n)?Infinity:n};
const order=(a,b)=>typeof a==="number"&&typeof b==="number"?(a<b?-1:a>b?1:0):
typeof a==="number"?-1:typeof b==="number"?1:a.localeCompare(b,undefined,{numeric:true});
[...table.tHead.rows[0].cells].forEach((head,i)=>{head.tabIndex=0;
const sort=()=>{const up=head.getAttribute("aria-sort")!=="ascending";
[...table.tHead.rows[0].cells].forEach(c=>c.removeAttribute("aria-sort"));
head.setAttribute("aria-sort",up?"ascending":"descending");
[...body.rows].sort((x,y)=>(up?1:-1)*order(key(x,i),key(y,i))).forEach(r=>body.append(r))};
head.addEventListener("click",sort);
head.addEventListener("keydown",e=>{if(e.key==="Enter")sort()})})});
document.querySelectorAll("button.copy").forEach(button=>{
const code=button.parentElement.querySelector("code"),said=button.textContent;
const done=()=>{button.textContent="Copied";setTimeout(()=>{button.textContent=said},1500)};
const chosen=()=>{const range=document.createRange();range.selectNodeContents(code);
const marked=getSelection();marked.removeAllRanges();marked.addRange(range);
if(document.execCommand("copy"))done()};
button.addEventListener("click",()=>{if(!navigator.clipboard)return chosen();
navigator.clipboard.writeText(code.textContent).then(done,chosen)})});
"""
