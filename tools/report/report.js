"use strict";
// Draws a measurement's charts when its page is opened, and keeps the list of pages in step.
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const shared = parse("charts");
  const options = { actions: false, renderer: "svg" };

  const table = (name, rows) => {
    const columns = shared.columns[name];
    return (rows || []).map((row) => Object.fromEntries(columns.map((c, i) => [c, row[i]])));
  };

  const draw = (page) => {
    if (!page || page.dataset.drawn) return;
    page.dataset.drawn = "yes";
    const data = parse(`data-${page.id}`);
    for (const place of page.querySelectorAll("[data-chart]")) {
      const names = shared.tables[place.dataset.tables];
      const datasets = Object.fromEntries(names.map((name) => [name, table(name, data[name])]));
      const chart = { ...shared.specifications[place.dataset.chart], datasets };
      // A layer without rows has no extent, and Vega complains.
      if (chart.layer) chart.layer = chart.layer.filter((each) => datasets[each.data.name].length);
      vegaEmbed(place, chart, options);
    }
  };

  const choose = document.getElementById("choose") || document.createElement("select");
  const opened = () => {
    const page = document.getElementById(location.hash.slice(1));
    if (page && !page.matches(".measurement")) return;
    choose.value = page ? location.hash : "#";
    draw(page);
  };
  choose.addEventListener("change", () => {
    location.hash = choose.value;
    if (choose.value === "#") scrollTo(0, 0);
  });
  addEventListener("hashchange", opened);
  // Only now is what the address names shown, and has a width.
  addEventListener("load", opened);

  for (const place of document.querySelectorAll("[data-plot]")) {
    vegaEmbed(place, parse(place.dataset.plot), options);
  }
})();
