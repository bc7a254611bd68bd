"use strict";

// A value as the page writes it.
function shown(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(3).replace(/\.?0+e/, "e");
  if (size >= 999.5) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(4)));
}

// The values under the pointer, in place of the last ones.
for (const figure of document.querySelectorAll("figure")) {
  const [x0, x1, y0, y1] = figure.dataset.range.split(" ").map(Number);
  const plot = figure.querySelector(".plot"), cursor = plot.querySelector(".cursor");
  const title = figure.querySelector("h3"), name = title.textContent;
  const outputs = [...figure.querySelectorAll("output")], last = outputs.map(o => o.textContent);
  let curves;

  const points = path => {
    const numbers = path.getAttribute("d").match(/[\d.]+/g).map(Number), found = [];
    for (let i = 0; i < numbers.length; i += 2) found.push([numbers[i], numbers[i + 1]]);
    return found;
  };
  const nearest = (points, x) => {
    let low = 0, high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle][0] < x) low = middle; else high = middle;
    }
    return x - points[low][0] < points[high][0] - x ? points[low] : points[high];
  };

  plot.addEventListener("pointermove", event => {
    curves ??= [...figure.querySelectorAll(".curve")].map(points);
    const box = plot.getBoundingClientRect();
    const x = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * 1000;
    const at = nearest(curves.reduce((a, b) => a.length >= b.length ? a : b), x)[0];
    outputs.forEach((output, i) => {
      output.textContent = shown(y1 - nearest(curves[i], at)[1] / 1000 * (y1 - y0));
    });
    title.textContent = name + ", step " + Math.round(x0 + at / 1000 * (x1 - x0)).toLocaleString("en-US");
    cursor.style.display = "block";
    cursor.style.left = at / 10 + "%";
  });
  plot.addEventListener("pointerleave", () => {
    outputs.forEach((output, i) => { output.textContent = last[i]; });
    title.textContent = name;
    cursor.style.display = "none";
  });
}

// While the run goes on, so does the page; of a run that was killed nothing new comes.
const running = document.querySelector("[data-written]");
if (running) {
  const minutes = Math.floor((Date.now() / 1000 - running.dataset.written) / 60);
  if (minutes >= 10) running.append(" · no news for " + minutes + " min");
  setInterval(() => {
    if (!document.hidden && getSelection().isCollapsed) location.reload();
  }, 15000);
}
document.documentElement.classList.add("ready");
