// SPDX-License-Identifier: LGPL-2.1-or-later
// One line about the last change; screen readers read it, and it disappears automatically.

const LASTS = 8000;
let timer;

/** Show a notice. */
export function notice(text) {
  const line = document.getElementById("notice");
  clearTimeout(timer);
  line.textContent = text;
  timer = setTimeout(() => {
    line.textContent = "";
  }, LASTS);
}
