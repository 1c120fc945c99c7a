"use strict";
// Everything is in the page already: this hides answers by filter, opens them, and copies lines.

const filters = document.getElementById("filters");

function show() {
  const wanted = Object.fromEntries(new FormData(filters));
  let shown = 0;
  for (const article of document.querySelectorAll("article")) {
    const { task, question } = article.dataset;
    const fits = (!wanted.task || wanted.task === task) && (!wanted.question || wanted.question === question);
    article.hidden = !fits;
    for (const answer of article.querySelectorAll("details")) {
      answer.hidden = Boolean(wanted.arm) && wanted.arm !== answer.dataset.arm;
      if (fits && !answer.hidden) shown += 1;
    }
  }
  document.getElementById("shown").textContent = shown === 1 ? "1 answer" : `${shown} answers`;
}

if (filters) {
  // Without scripts the form would do nothing, so it is hidden until now
  filters.hidden = false;
  filters.addEventListener("change", show);
  filters.addEventListener("submit", (event) => event.preventDefault());
  const unfold = document.getElementById("unfold");
  unfold.addEventListener("click", () => {
    const open = unfold.textContent === "open all";
    for (const answer of document.querySelectorAll("article:not([hidden]) details:not([hidden])")) answer.open = open;
    unfold.textContent = open ? "close all" : "open all";
  });
  show();
}

function select(node) {
  const range = document.createRange();
  range.selectNodeContents(node);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}

for (const button of document.querySelectorAll(".copy button")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const line = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(line.textContent);
      button.textContent = "copied";
    } catch {
      // A browser may keep the clipboard from a local file: then the line is selected, ready for Ctrl-C
      select(line);
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  });
}
