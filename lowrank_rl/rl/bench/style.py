"""The page's style sheet: light and dark as the reader's system is, wide tables in boxes of their own."""

SHEET = """
:root { color-scheme: light dark; --ground: #fff; --raised: #f5f6f8; --ink: #1b1f24; --soft: #57606a; --rule: #d4d9df;
  --link: #0550ae; --good: #116329; --bad: #a40e26; --even: #57606a; --warn-ground: #fff4d6; --warn-ink: #5c4400; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --raised: #1d2228; --ink: #e6e9ed; --soft: #a3adb8;
  --rule: #363d46; --link: #79b8ff; --good: #5fd07a; --bad: #ff8f94; --even: #a3adb8; --warn-ground: #3a2f10;
  --warn-ink: #f3dc9b; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans",
  sans-serif; -webkit-text-size-adjust: 100%; }
main, header, nav { max-width: 76rem; margin: 0 auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: .5rem; border-top: 2px solid var(--rule); }
h3 { font-size: 1.08rem; margin: 1.8rem 0 .4rem; }
p, ul, dl { max-width: 62rem; margin: .5rem 0; }
a { color: var(--link); }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
.lead { font-size: 1.05rem; }
nav { position: sticky; top: 0; z-index: 5; background: var(--ground); border-bottom: 1px solid var(--rule); }
nav ul { display: flex; gap: .2rem 1.1rem; overflow-x: auto; white-space: nowrap; list-style: none; margin: 0;
  padding: .55rem 0; max-width: none; }
nav.contents { position: static; padding: 0; border: 0; } nav.contents ul { flex-wrap: wrap; }
[id] { scroll-margin-top: 3.2rem; }
.skip { position: absolute; left: -100rem; } .skip:focus { left: 1rem; top: .5rem; background: var(--ground); z-index: 9; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.scroll { position: relative; overflow-x: auto; margin: .5rem 0 .4rem; border: 1px solid var(--rule); border-radius: 6px; }
.scroll:focus-visible, a:focus-visible, summary:focus-visible { outline: 3px solid var(--link); outline-offset: 1px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .7rem; text-align: right; vertical-align: top; white-space: nowrap; }
thead th { background: var(--raised); border-bottom: 1px solid var(--rule); vertical-align: bottom; }
thead small { display: block; font-weight: 400; color: var(--soft); }
tbody th { text-align: left; font-weight: 400; }
th.label { text-align: left; white-space: normal; }
tbody th.method { font-weight: 600; position: sticky; left: 0; background: var(--ground); z-index: 1;
  border-right: 1px solid var(--rule); }
thead th:first-child { position: sticky; left: 0; z-index: 2; }
tbody tr.new > * { border-top: 1px solid var(--rule); } tbody tr:first-child > * { border-top: 0; }
td small, tbody th small { display: block; font-weight: 400; color: var(--soft); font-size: .82em; line-height: 1.25; }
tr.paper td, tr.paper th.source, tr.unrun td, tr.unrun th.source { background: var(--raised); }
tr.unrun th.method { font-weight: 400; color: var(--soft); }
td.gap { color: var(--warn-ink); background: var(--warn-ground); font-style: italic; }
td strong { font-weight: 700; }
.better { color: var(--good); } .worse { color: var(--bad); } .within { color: var(--even); }
.mark { display: inline-block; width: 1.1em; text-align: center; font-weight: 700; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.bar { display: flex; height: .7rem; min-width: 9rem; border-radius: 3px; overflow: hidden; margin-top: .35rem; gap: 1px; }
.bar span { display: block; } .bar .better { background: var(--good); } .bar .within { background: var(--even); opacity: .55; }
.bar .worse { background: var(--bad); }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .8rem; margin: .5rem 0;
  padding: 0; }
.panels figure { margin: 0; display: flex; flex-direction: column; justify-content: flex-end; } .panels b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 10.5px; }
svg .grid { stroke: var(--rule); stroke-width: 1; } svg polyline { fill: none; stroke: var(--ink); stroke-width: 1.9; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; list-style: none; padding: 0; font-size: .88rem; }
.legend li { display: flex; align-items: center; gap: .4rem; } svg.key { width: 36px; flex: none; }
figure.picture { margin: 1rem 0; } figure.picture div { background: #fff; border: 1px solid var(--rule); border-radius: 6px;
  overflow-x: auto; padding: .3rem; } figure.picture img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
pre { background: var(--raised); padding: .7rem; border-radius: 6px; overflow-x: auto; font-size: .82rem; line-height: 1.4; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--link); }
.notes li { margin: .35rem 0; overflow-wrap: anywhere; }
.alert { background: var(--warn-ground); color: var(--warn-ink); padding: .5rem .8rem; border-radius: 6px; }
footer { margin: 3rem auto 2rem; }
@media (max-width: 40rem) { body { font-size: 15px; } main, header, nav { padding: 0 .8rem; } h1 { font-size: 1.35rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .4rem; } th, td { padding: .3rem .5rem; }
  figure.picture img { max-width: none; width: 44rem; } }
@media print { nav, .skip { display: none; } .scroll { overflow: visible; } body { font-size: 11px; } }
"""
