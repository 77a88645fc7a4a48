// What gr.HTML cannot do by itself: play.py appends a call of one of these to each that needs it.

function choosing(element, trigger, watch) {  // a button of the sheet
  element.addEventListener("click", ({target}) => {
    const number = +target.closest("button")?.dataset.number;
    if (number) { element.last = number; trigger("select", {number}); }
  });
  watch("value", () => {  // the buttons are new, so the one that had the focus is gone
    if (document.activeElement == document.body)
      element.querySelector(`[data-number="${element.last}"]`)?.focus();
  });
}

function drawing(element, trigger) {  // points into the plane, each from -1 to 1
  let points = null;
  element.addEventListener("pointerdown", (event) => {
    if (event.pointerType == "touch" || !event.target.closest("svg")) return;  // that scrolls
    points = [];
    event.preventDefault();
  });
  element.addEventListener("pointermove", ({clientX, clientY}) => {
    if (!points) return;
    const svg = element.querySelector("svg"), box = svg.getBoundingClientRect();
    const half = Math.min(box.width, box.height) / 2;
    const x = (clientX - box.x - box.width / 2) / half;
    const y = (clientY - box.y - box.height / 2) / half;
    points.push([x, -y]);
    const dot = `<circle class="real" cx="${200 + 200 * x}" cy="${200 + 200 * y}" r="2"/>`;
    svg.insertAdjacentHTML("beforeend", dot);
  });
  window.addEventListener("pointerup", () => {
    if (points?.length) trigger("input", {points});
    points = null;
  });
}
