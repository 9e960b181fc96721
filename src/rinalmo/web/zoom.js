// Zoom and pan of figures: buttons, pinch or Ctrl + wheel, and dragging once a figure is enlarged.
(() => {
  const apply = (canvas, scale, x, y) => {
    scale = Math.min(Math.max(scale, 1), 12);
    if (scale === 1) x = y = 0;
    Object.assign(canvas.dataset, { scale, x, y });
    canvas.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    canvas.style.cursor = scale > 1 ? "grab" : "";
    canvas.style.touchAction = scale > 1 ? "none" : ""; // a finger drags the figure, not the page
  };
  const state = (canvas) => ["scale", "x", "y"].map((key, n) => Number(canvas.dataset[key] ?? (n ? 0 : 1)));
  const zoom = (canvas, factor) => {
    const [scale, x, y] = state(canvas);
    apply(canvas, factor ? scale * factor : 1, x * (factor || 0), y * (factor || 0));
  };
  const canvasOf = (element) => element.closest?.(".picture")?.querySelector(".canvas");

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-zoom]");
    if (button) zoom(canvasOf(button), Number(button.dataset.zoom));
  });
  document.addEventListener("wheel", (event) => {
    const canvas = event.ctrlKey && canvasOf(event.target);
    if (!canvas) return;
    event.preventDefault();
    zoom(canvas, event.deltaY < 0 ? 1.15 : 1 / 1.15);
  }, { passive: false });
  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target.closest?.(".canvas");
    if (!canvas || state(canvas)[0] === 1) return;
    event.preventDefault();
    const [scale, x, y] = state(canvas), { clientX, clientY } = event;
    const move = (next) => apply(canvas, scale, x + next.clientX - clientX, y + next.clientY - clientY);
    document.addEventListener("pointermove", move);
    const end = () => document.removeEventListener("pointermove", move);
    for (const last of ["pointerup", "pointercancel"]) document.addEventListener(last, end, { once: true });
  });
})();
