// What scrolls sideways has to be reached by keyboard.
window.addEventListener("load", () => {
  const boxes = ".pst-scrollable-table-container, .cell_output .text_html, div.math, div.highlight pre";
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
});
