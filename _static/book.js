// What scrolls sideways has to be reached by keyboard, and what is clicked needs a name.
window.addEventListener("load", () => {
  // A mean and its spread are one number, "0.95 ± 0.02": on one line where the table then still fits.
  for (const box of document.querySelectorAll(".pst-scrollable-table-container")) {
    const before = box.scrollWidth;
    const spreads = [...box.querySelectorAll("td")].filter((cell) => /^\S+ ± \S+$/.test(cell.textContent.trim()));
    for (const cell of spreads) cell.style.whiteSpace = "nowrap";
    if (box.scrollWidth > before) for (const cell of spreads) cell.style.whiteSpace = "";
  }
  const boxes = ".pst-scrollable-table-container, .cell_output .text_html, div.math, div.highlight pre";
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
  // The theme's toggles in the list of pages show an arrow and say nothing.
  for (const toggle of document.querySelectorAll("nav summary")) {
    if (!toggle.textContent.trim()) toggle.setAttribute("aria-label", "pages of this part");
  }
  // Sphinx calls citations a list whose children are no list items.
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
});
