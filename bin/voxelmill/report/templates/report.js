const dialog = document.querySelector("dialog");
const enlarged = dialog.querySelector(".enlarged");
document.addEventListener("click", (event) => {
  const stack = event.target.closest(".sample .stack");
  if (stack) {
    const copy = document.createElement("div");
    const ratio = Number.parseFloat(stack.style.aspectRatio);
    copy.className = "stack";
    copy.style.aspectRatio = ratio;
    copy.append(...[...stack.children].map((layer) => layer.cloneNode(true)));
    enlarged.style.width = `min(92vw, ${82 * ratio}vh)`;
    enlarged.replaceChildren(copy, stack.nextElementSibling.cloneNode(true));
    const shown = stack.closest(".sample").querySelector(".toggle input")?.checked ?? true;
    copy.querySelectorAll(".outlines").forEach((layer) => layer.style.setProperty("visibility", shown ? "visible" : "hidden"));
    dialog.showModal();
  } else if (event.target === dialog) {
    dialog.close();
  }
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
