// SPDX-License-Identifier: LGPL-2.1-or-later
// Light or dark, as chosen in Cockpit's menu. The shell stores the choice and dispatches an event; "auto" follows the system
// (pkg/lib/cockpit-dark-theme.js of Cockpit).

const system = matchMedia("(prefers-color-scheme: dark)");

function apply(chosen = localStorage.getItem("shell:style") || "auto") {
  document.documentElement.classList.toggle("dark", chosen === "dark" || (chosen === "auto" && system.matches));
}

addEventListener("storage", (event) => {
  if (event.key === "shell:style") apply();
});
addEventListener("cockpit-style", (event) => apply(event.detail.style));
system.addEventListener("change", () => apply());
apply();
