// SPDX-License-Identifier: LGPL-2.1-or-later
// One line about what was just done; screen readers say it, and it goes by itself.

const LASTS = 8000;
let timer;

/** Say it. */
export function notice(text) {
  const line = document.getElementById("notice");
  clearTimeout(timer);
  line.textContent = text;
  timer = setTimeout(() => {
    line.textContent = "";
  }, LASTS);
}
