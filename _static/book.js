// What scrolls sideways has to be reached by keyboard, and what is clicked needs a name.
window.addEventListener("load", () => {
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
