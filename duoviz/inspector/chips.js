// The text as tokens: the pointer previews one, a click or the arrow keys select it, Escape releases it.
// Characters only ever become text nodes, so that nothing in a text is read as markup.

const KEYS = {
  ArrowLeft: { step: -1 }, ArrowRight: { step: 1 }, ArrowUp: { layer: 1 }, ArrowDown: { layer: -1 },
  Escape: { release: true }, " ": { cycle: true },
};

function render({ model, el }) {
  const box = document.createElement("div");
  const preview = document.createElement("div");
  const legend = document.createElement("div");
  el.classList.add("duoviz-chips");
  box.className = "duoviz-text";
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", "tokens of the text");
  box.dataset.lmSuppressShortcuts = "true"; // JupyterLab leaves the keys to us
  preview.className = "duoviz-preview";
  legend.className = "duoviz-legend";
  el.replaceChildren(legend, box, preview);
  let chips = [];

  const write = () => {
    chips = model.get("pieces").map((piece, index) => {
      const chip = document.createElement("span");
      chip.textContent = piece;
      chip.dataset.chip = index;
      chip.dataset.token = model.get("tokens")[index]?.at(-1) ?? "";
      chip.setAttribute("role", "option");
      return chip;
    });
    const nodes = chips.flatMap((chip, index) =>
      model.get("breaks").includes(index) ? [chip, document.createElement("br")] : [chip]);
    box.replaceChildren(...nodes);
    colour();
    mark();
  };
  const colour = () => {
    const styles = model.get("styles");
    chips.forEach((chip, index) => { chip.style.cssText = styles[index] ?? ""; });
    legend.replaceChildren(document.createTextNode(model.get("meaning")), ...model.get("legend").map(([text, css]) => {
      const step = document.createElement("span");
      step.textContent = text;
      step.style.cssText = css;
      return step;
    }));
    show(model.get("selected"));
  };
  const mark = () => {
    const selected = model.get("selected");
    const holder = model.get("tokens").findIndex((tokens) => tokens.includes(selected));
    chips.forEach((chip, index) => {
      chip.classList.toggle("selected", index === holder);
      chip.setAttribute("aria-selected", index === holder);
    });
    const chip = chips[holder];
    if (chip) {
      if (chip.offsetTop < box.scrollTop) box.scrollTop = chip.offsetTop;
      const below = chip.offsetTop + chip.offsetHeight - box.scrollTop - box.clientHeight;
      if (below > 0) box.scrollTop += below;
    }
    show(selected);
  };
  const show = (...tokens) => {
    const labels = model.get("labels");
    preview.textContent = tokens.map((token) => labels[token]).filter(Boolean).join("  |  ") || model.get("hint");
  };
  const tokens = (event) => model.get("tokens")[event.target.dataset?.chip];

  box.addEventListener("pointerover", (event) => { if (tokens(event)) show(...tokens(event)); });
  box.addEventListener("pointerleave", () => show(model.get("selected")));
  box.addEventListener("click", (event) => {
    box.focus({ preventScroll: true });
    const within = tokens(event);
    if (!within?.length) return;
    // of a character that is cut into several tokens the last is selected, then one after the other
    const next = within[(within.indexOf(model.get("selected")) + 1) % within.length];
    model.send({ token: within.includes(model.get("selected")) ? next : within.at(-1) });
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "?") preview.textContent = model.get("hint");
    if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    model.send(KEYS[event.key]);
  });
  model.on("change:pieces", write);
  for (const name of ["styles", "labels", "legend", "meaning"]) model.on(`change:${name}`, colour);
  model.on("change:selected", mark);
  write();
}

export default { render };
