// SPDX-License-Identifier: LGPL-2.1-or-later
// The table of modules.

import * as calls from "../calls.js";
import {joined, make, moduleLink, nothing} from "./dom.js";
import {load} from "./operations.js";
import {Table} from "./table.js";
import {STATES, count, size, taint} from "./wording.js";

const CHOICES = [
  ["loaded", "Loaded"],
  ["available", "Not loaded"],
  ["builtin", "Built in"],
  ["all", "All"],
];
const USERS_SHOWN = 6;

/** Kinds of events after which the table may have changed. */
export const concerns = ["module-", "store-", "configuration-"];

const isLoaded = (row) => row.size !== undefined;

const COLUMNS = [
  {name: "name", label: "Module", cell: (row) => moduleLink(row.name), value: (row) => row.name},
  {
    name: "size",
    label: "Size",
    numeric: true,
    cell: (row) => (isLoaded(row) ? size(row.size) : ""),
    value: (row) => row.size ?? -1,
  },
  {
    name: "references",
    label: "Refs",
    numeric: true,
    cell: (row) => (isLoaded(row) ? String(row.references) : ""),
    value: (row) => row.references ?? -1,
  },
  {name: "holders", label: "Used by", cell: usedBy, value: (row) => (row.holders || []).length},
  {name: "state", label: "State", cell: state, value: (row) => row.state},
  {
    name: "taint",
    label: "Taint",
    cell: (row) => (row.taint ? make("span", {class: "warn"}, taint(row.taint)) : ""),
    value: (row) => row.taint || "",
  },
  {
    name: "origin",
    label: "Origin",
    cell: (row) => make("span", {class: row.origin === "in-tree" ? "usual" : ""}, row.origin || ""),
    value: (row) => row.origin || "",
  },
];

function usedBy(row) {
  const holders = row.holders || [];
  const beyond = isLoaded(row) ? row.references - holders.length : 0;
  const parts = joined(holders.slice(0, USERS_SHOWN).map(moduleLink));
  if (holders.length > USERS_SHOWN) parts.push(` and ${holders.length - USERS_SHOWN} more`);
  // References that no module accounts for: mounts, processes, devices. The module's page names them.
  if (beyond > 0) parts.push(make("span", {class: "dim"}, parts.length ? " + " : "", count(beyond, "other reference")));
  return parts;
}

function state(row) {
  // The usual values are dimmed, so that the others stand out.
  const kind = {live: "usual", coming: "warn", going: "warn", disabled: "bad"}[row.state] || "";
  const word = make("span", {class: kind}, STATES[row.state] || row.state);
  if (row.state !== "available") return word;
  return [
    word,
    " ",
    make(
      "button",
      {
        type: "button",
        class: "small",
        "data-key": `load-${row.name}`,
        "aria-label": `Load ${row.name}`,
        click: () => load(row.name),
      },
      "Load …",
    ),
  ];
}

/** From the taint, as the daemon does; `store` if its active version has this name. */
function origin(row, stored) {
  if (!isLoaded(row)) return row.state === "builtin" ? "kernel" : "";
  if (!row.taint.includes("O")) return "in-tree";
  return stored.has(row.name) ? "store" : "out-of-tree";
}

/** The view; `look` refreshes it. */
export function open(main, _, look) {
  const remembered = {chosen: "loaded", wanted: ""};
  const filter = make("input", {
    type: "search",
    id: "filter",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "name, user, state, taint …",
    "aria-keyshortcuts": "/",
    "aria-controls": "modules",
    input: () => {
      remembered.wanted = filter.value.trim().toLowerCase();
      draw();
    },
  });
  const choices = make(
    "fieldset",
    {class: "choices"},
    make("legend", {class: "unseen"}, "Which modules"),
    ...CHOICES.map(([value, label]) => [
      make("input", {
        type: "radio",
        name: "state",
        id: `state-${value}`,
        value,
        checked: value === remembered.chosen,
        change: () => {
          remembered.chosen = value;
          rows = null;
          look();
        },
      }),
      make("label", {for: `state-${value}`}, label),
    ]),
  );
  const summary = make("p", {class: "summary", role: "status"});
  const table = new Table({caption: "Modules", columns: COLUMNS, key: (row) => row.name, sort: "name"});
  const empty = make("div");
  const body = make("div", {id: "modules", class: "wide"}, table.element);
  main.append(
    make(
      "div",
      {class: "tools"},
      make("label", {for: "filter", class: "unseen"}, "Filter modules"),
      filter,
      choices,
      summary,
    ),
    body,
    empty,
  );
  let rows = null;

  function draw(fresh) {
    if (!rows) return;
    const fits = (row) =>
      [row.name, ...(row.holders || []), STATES[row.state], row.origin, taint(row.taint || "")]
        .join(" ")
        .toLowerCase()
        .includes(remembered.wanted);
    const shown = rows.filter(fits);
    table.show(shown, fresh);
    body.hidden = !shown.length;
    // Modules that are not loaded have no other facts here.
    table.element.classList.toggle("names", ["available", "builtin"].includes(remembered.chosen));
    const bytes = shown.reduce((sum, row) => sum + (row.size || 0), 0);
    summary.textContent = `${shown.length === rows.length ? "" : `${shown.length} of `}${count(rows.length, "module")}${bytes ? `, ${size(bytes)}` : ""}`;
    empty.replaceChildren();
    if (shown.length) return;
    const elsewhere = make(
      "button",
      {type: "button", click: () => document.getElementById("state-all").click()},
      "Search all modules",
    );
    empty.append(
      rows.length
        ? nothing("No module here matches “", remembered.wanted, "”. ", remembered.chosen !== "all" && elsewhere)
        : nothing("No modules."),
    );
  }

  async function again() {
    const chosen = remembered.chosen;
    const [listed, stored, health] = await Promise.all([
      calls.modules(chosen),
      calls.stored().catch(() => []),
      calls.health(),
    ]);
    if (chosen !== remembered.chosen) return;
    const names = new Set(
      stored.filter((one) => one.active && one.kernel === health.release).map((one) => one.name),
    );
    const before = rows && new Set(rows.map((row) => row.name));
    rows = listed.map((row) => ({...row, origin: origin(row, names)}));
    draw(before ? new Set(rows.map((row) => row.name).filter((name) => !before.has(name))) : undefined);
  }

  return {title: "Modules", refresh: again};
}
