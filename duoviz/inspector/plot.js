// A plotly figure. All figures share one copy of plotly.js, which the kernel sends from its installed package; each is as
// wide as its place. A click sends the point, in the figure's own coordinates.

function load(model) {
  window.duovizPlotly ??= (async () => {
    const library = await model.widget_manager.get_model(model.get("library").replace("IPY_MODEL_", ""));
    const parts = ["(function (define, module, exports) {", library.get("source"), "\n}).call(window);"]; // a global, nothing else
    const script = document.createElement("script");
    script.src = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
    await new Promise((loaded, failed) => {
      script.onload = loaded;
      script.onerror = () => failed(new Error("plotly.js could not be loaded"));
      document.head.append(script);
    });
    return window.Plotly;
  })().catch((error) => { window.duovizPlotly = undefined; throw error; });
  return window.duovizPlotly;
}

async function render({ model, el }) {
  const box = document.createElement("div");
  el.classList.add("duoviz-plot");
  el.replaceChildren(box);
  let Plotly;
  try {
    Plotly = await load(model);
  } catch (error) {
    el.textContent = String(error);
    return;
  }
  const draw = async () => {
    const { data, layout } = JSON.parse(model.get("figure"));
    box.style.height = `${layout.height}px`;
    await Plotly.react(box, data, { ...layout, autosize: true }, model.get("config"));
    await Plotly.relayout(box, model.get("moved")); // since the figure was made
  };
  await draw();
  box.on("plotly_click", ({ points: [point] }) => model.send({ x: point.x, y: point.y }));
  const fill = new ResizeObserver(() => { if (box.offsetWidth) Plotly.Plots.resize(box); });
  fill.observe(el);
  model.on("change:figure", draw);
  model.on("change:moved", () => Plotly.relayout(box, model.get("moved")));
  return () => {
    fill.disconnect();
    Plotly.purge(box);
  };
}

export default { render };
