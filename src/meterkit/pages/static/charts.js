"use strict";
// Draws each chart from the table below it, so that both have the same figures.
(() => {
  const drawn = [];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const draw = (place) => {
    const table = place.nextElementSibling.querySelector("table");
    const days = [...table.querySelectorAll("time")].map((time) => Date.parse(time.dateTime) / 1000);
    const per = Number(place.dataset.per ?? 1);  // How much makes a unit of money.
    const units = [...table.querySelectorAll(".charted data")].map((data) => Number(data.value) / per);
    if (days[0] > days[days.length - 1]) [days, units].forEach((values) => values.reverse());
    const share = Number(place.dataset.share) / per;
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line") }, ticks: { stroke: colour("--line") } };
    place.hidden = false;
    place.parentNode.querySelectorAll(".with-chart").forEach((told) => { told.hidden = false; });
    place.replaceChildren();
    const options = {
      width: place.clientWidth, height: 200, tzDate: (s) => uPlot.tzDate(new Date(s * 1e3), "Etc/UTC"),
      legend: { show: false }, cursor: { show: false }, scales: { x: { range: (_, first, last) => [first - 43200, last + 43200] }, y: { range: (_, least, most) => [Math.min(0, least), 1.05 * Math.max(most, share || 0) || 1] } },
      axes: [{ ...axis, values: (_, at) => at.map((s) => new Date(s * 1e3).toISOString().slice(5, 10)) }, { ...axis, size: 70, values: (_, at) => at.map((n) => n.toLocaleString("en", { notation: "compact" })) }],
      series: [{}, { stroke: colour("--accent"), fill: `${colour("--accent")}55`, paths: uPlot.paths.bars({ size: [0.7, 60] }), points: { show: false } },
        ...(share ? [{ stroke: colour("--quiet"), dash: [6, 4], points: { show: false } }] : [])],
    };
    return new uPlot(options, share ? [days, units, days.map(() => share)] : [days, units], place);
  };

  const all = () => {
    drawn.splice(0).forEach((chart) => chart.destroy());
    // A chart of one day would show nothing that its table does not.
    const places = [...document.querySelectorAll(".chart")];
    drawn.push(...places.filter((place) => place.nextElementSibling.querySelectorAll("time").length > 1).map(draw));
  };
  all();
  dark.addEventListener("change", all);
  addEventListener("resize", () => drawn.forEach((chart) => chart.setSize({ width: chart.root.parentNode.clientWidth, height: 200 })));
})();
