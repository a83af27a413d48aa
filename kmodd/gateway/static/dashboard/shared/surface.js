// SPDX-License-Identifier: LGPL-2.1-or-later
// The attack surface: which modules of a kernel can be loaded by whom, by which route, and which vulnerabilities keep modules out.

import * as calls from "../calls.js";
import {change} from "./change.js";
import {grid, joined, make, moduleLink, nothing, section, show} from "./dom.js";
import {panel} from "./failure.js";
import {Table} from "./table.js";
import {count, time} from "./wording.js";

// The widest first, as the daemon sorts them.
const REACHES = [
  ["unprivileged", "any user"],
  ["userns", "any user who makes a user namespace"],
  ["device", "users who may open a device node"],
  ["hardware", "devices that are plugged in"],
  ["root", "root only"],
  ["none", "no one"],
];
const WHO = Object.fromEntries(REACHES);
const ROWS_MAX = 200;
const TYPING = 300;

/** Kinds of events after which routes may have changed. The daemon computes all of them again, so not for each load. */
export const concerns = ["configuration-", "store-", "daemon"];

const request = (row) => [
  make("code", {}, row.request),
  row.through && [" for ", moduleLink(row.through), ", which needs it"],
];

const COLUMNS = [
  {name: "module", label: "Module", cell: (row) => moduleLink(row.module), value: (row) => row.module},
  {
    name: "reach",
    label: "Can be loaded by",
    cell: (row) => make("span", {class: ["unprivileged", "userns"].includes(row.reach) ? "warn" : ""}, WHO[row.reach]),
    value: (row) => REACHES.findIndex(([reach]) => reach === row.reach),
  },
  {name: "loaded", label: "Loaded", cell: (row) => (row.loaded ? "yes" : ""), value: (row) => Number(row.loaded)},
  {
    name: "routes",
    label: "Open routes",
    numeric: true,
    cell: (row) => String(row.routes),
    value: (row) => row.routes,
  },
  {name: "request", label: "Widest route", cell: request},
];

const setting = (one) =>
  make(
    "tr",
    {},
    make("th", {scope: "row", class: "code"}, one.name),
    make("td", {class: "code value"}, one.value || "(none)"),
    make(
      "td",
      {},
      make("span", {class: one.unread || one.unusual ? "warn" : one.closes ? "good" : "dim"}, one.says),
    ),
  );

function settings(found) {
  const lines = [
    ...found.unreadable.map((file) => `${file} cannot be read: its rules may close what is counted as open.`),
    ...(found.nodes_known ? [] : ["The modes of device nodes cannot be read: their routes count as open."]),
  ];
  return [
    ...lines.map((text) => make("p", {class: "warn"}, text)),
    make(
      "details",
      {"data-key": "settings"},
      make("summary", {}, "Settings of the kernel that close routes"),
      grid("settings", ["Setting", "Value", "Effect"], found.guards.map(setting)),
    ),
  ];
}

const numbers = (found, wanted) =>
  grid(
    "numbers",
    [make("th", {scope: "col", class: "number"}, "Modules"), "Can be loaded by"],
    REACHES.map(([reach, words]) =>
      make(
        "tr",
        {class: reach === wanted ? "fresh" : ""},
        make("td", {class: "number"}, String(found[reach])),
        make("th", {scope: "row"}, words),
      ),
    ),
  );

const end = (one) =>
  change({
    title: `End the response ${one.id}`,
    verb: "End",
    preview: async () => ({
      content: make(
        "p",
        {},
        one.rules.length ? ["Can be loaded again: ", joined(one.rules.map(moduleLink)), "."] : "It wrote no rules.",
      ),
    }),
    perform: ({reason}) => calls.endResponse(one.id, {reason}),
  });

const response = (one) =>
  make(
    "tr",
    {},
    make("th", {scope: "row", class: "code"}, one.id),
    make("td", {}, one.title),
    make("td", {}, joined(one.modules.map(moduleLink))),
    make("td", {}, time(one.begun)),
    make(
      "td",
      {class: "act"},
      make("button", {type: "button", "data-key": `end ${one.id}`, click: () => end(one)}, "End …"),
    ),
  );

/** Vulnerabilities whose modules are kept out; nothing where there are none. */
function answered({responses, problem}) {
  if (problem) return [section("Responses to vulnerabilities", panel(problem))];
  if (!responses.length) return [];
  const headers = ["Vulnerability", "Title", "Modules", "Since", ""];
  return [section("Responses to vulnerabilities", grid("rules", headers, responses.map(response)))];
}

/** The view; `look` refreshes it. */
export function open(main, _, look) {
  const choice = (id, label, options, changed) => [
    make("label", {for: id}, label),
    make("select", {id, change: changed}, ...options.map(([value, words]) => make("option", {value}, words))),
  ];
  let timer = null;
  const filter = make("input", {
    type: "search",
    id: "filter",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "name or pattern, such as nf_*",
    "aria-keyshortcuts": "/",
    input: () => {
      clearTimeout(timer);
      timer = setTimeout(look, TYPING);
    },
  });
  const reach = choice("reach", "Loaded by", [["", "anyone"], ...REACHES], () => look());
  const kernel = choice("kernel", "Kernel", [["", "the running one"]], () => look());
  const summary = make("p", {class: "summary", role: "status"});
  const table = new Table({caption: "Modules", columns: COLUMNS, key: (row) => row.module});
  const about = make("div");
  const vulnerabilities = make("div");
  const empty = make("div");
  main.append(
    about,
    make(
      "div",
      {class: "tools"},
      make("label", {for: "filter", class: "unseen"}, "Filter the modules"),
      filter,
      reach,
      kernel,
      summary,
    ),
    make("div", {class: "wide"}, table.element),
    empty,
    vulnerabilities,
  );

  /** The installed kernels: the choice is made once, so that it does not close while someone makes it. */
  function kernels(found) {
    const select = kernel[1];
    if (select.options.length > 1) return;
    for (const release of found.kernels.filter((one) => !(found.running && one === found.kernel)))
      select.append(make("option", {value: release}, release));
  }

  async function again(untold) {
    if (untold && about.hasChildNodes()) return;
    const text = filter.value.trim().replaceAll("-", "_");
    const query = {limit: ROWS_MAX};
    if (reach[1].value) query.reach = reach[1].value;
    if (kernel[1].value) query.kernel = kernel[1].value;
    if (text) query.match = /[*?[]/.test(text) ? text : `*${text}*`;
    const [found, kept] = await Promise.all([
      calls.surface(query),
      calls.responses().then((responses) => ({responses}), (problem) => ({problem})),
    ]);
    kernels(found);
    show(vulnerabilities, [kept.responses, kept.problem?.message], () => answered(kept));
    show(about, [found.kernel, reach[1].value, REACHES.map(([name]) => found[name]), found.guards], () => [
      make("p", {}, "Kernel ", make("code", {}, found.kernel), found.running ? "" : ", which is not running"),
      numbers(found, reach[1].value),
      ...settings(found),
    ]);
    summary.textContent =
      found.modules.length === ROWS_MAX ? `the first ${ROWS_MAX} modules` : count(found.modules.length, "module");
    table.element.hidden = found.modules.length === 0;
    table.show(found.modules);
    show(empty, found.modules.length, () => (found.modules.length ? [] : [nothing("No such modules.")]));
  }

  return {title: "Attack surface", refresh: again, close: () => clearTimeout(timer)};
}

/** Who can have a module loaded, by which routes, and what closes the others. */
export function routes(rows) {
  if (!rows.length) return [nothing("The kernel does not request it by any alias.")];
  const row = (one) =>
    make(
      "tr",
      {},
      make("td", {}, make("span", {class: `chip ${one.open ? "warn" : "good"}`}, one.open ? "open" : "closed")),
      make(
        "th",
        {scope: "row"},
        request(one),
        one.more > 0 && ` and ${one.more} more`,
      ),
      make(
        "td",
        {},
        one.way,
        one.closed_by && make("p", {class: "hint"}, "Closed: ", one.closed_by),
        one.command &&
          make("p", {class: "warn"}, `Runs a command: ${one.rule} (${one.file}:${one.line})`),
      ),
    );
  return [grid("routes", ["State", "Request", "By whom"], rows.map(row))];
}
