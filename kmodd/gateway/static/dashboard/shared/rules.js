// SPDX-License-Identifier: LGPL-2.1-or-later
// Configuration: every rule in effect with its file and line, and the drift from the desired state.

import * as calls from "../calls.js";
import {change} from "./change.js";
import {grid, make, moduleLink, nothing, section, show} from "./dom.js";
import {panel} from "./failure.js";
import {DISCONNECT} from "./operations.js";
import {count} from "./wording.js";

/** Kinds of events after which rules or drift may have changed. */
export const concerns = ["configuration-", "module-", "store-", "manager-"];

const isName = (text) => /^[A-Za-z0-9][A-Za-z0-9_-]*$/.test(text);
const name = (text) => (isName(text) ? moduleLink(text) : make("code", {}, text));

function row(rule) {
  return make(
    "tr",
    {class: rule.shadowed_by ? "shadowed" : ""},
    make("td", {}, rule.kind),
    make("th", {scope: "row"}, rule.module ? name(rule.module) : ""),
    make(
      "td",
      {class: "code"},
      rule.value === undefined ? make("span", {class: "dim"}, calls.UNREADABLE) : rule.value,
    ),
    make(
      "td",
      {},
      make("code", {}, `${rule.file}${rule.line ? `:${rule.line}` : ""}`),
      rule.ours && [" ", make("span", {class: "chip"}, "kmodd’s")],
      rule.shadowed_by &&
        make("p", {class: "warn"}, "not in effect: ", make("code", {}, rule.shadowed_by), " takes precedence"),
      rule.masks?.length > 0 && make("p", {class: "dim"}, "masks ", make("code", {}, rule.masks.join(", "))),
      (rule.findings || []).map(finding),
    ),
  );
}

const finding = ({message, severity, instead}) =>
  make(
    "p",
    {class: severity === "note" ? "dim" : "warn"},
    message,
    instead?.length > 0 && ["; write instead:", instead.map(([file, line]) => replacement(file, line))],
  );

const replacement = (file, line) => [make("br"), make("code", {}, line), " in ", make("code", {}, file)];

/** Rules as a table. */
export const table = (rules) => grid("rules", ["Kind", "Module", "Value", "Where"], rules.map(row));

const drift = (one) =>
  make(
    "tr",
    {},
    make("th", {scope: "row"}, one.module ? name(one.module) : "(system)"),
    make("td", {}, one.kind),
    make("td", {}, one.wanted),
    make("td", {class: "warn"}, one.actual),
    make("td", {}, one.hint && make("code", {}, one.hint)),
  );

const drifts = (found) =>
  found.length
    ? grid("rules", ["Module", "Kind", "Wanted", "Is", "Hint"], found.map(drift))
    : nothing("The system matches the desired state.");

// A dry run returns results as if it had been done.
const AHEAD = {changed: "change", unchanged: "leave", failed: "fail", "rolled-back": "undo", skipped: "skip"};

/** What `Apply` would do, as a list. */
function outcomes(found) {
  if (!found.length) return make("p", {class: "nothing"}, "Nothing to do.");
  return make(
    "ol",
    {class: "plan"},
    ...found.map((one) =>
      make(
        "li",
        {class: one.error ? "fails" : ""},
        make("span", {class: "verb"}, AHEAD[one.result] || one.result),
        " ",
        one.module && moduleLink(one.module),
        " ",
        make("span", {class: "because"}, one.changed.filter((name) => name !== one.module).join(", ")),
        one.error &&
          make("p", {class: "why"}, one.message, " ", make("code", {}, one.error), one.hint && [" ", one.hint]),
      ),
    ),
  );
}

const apply = () =>
  change({
    recorded: true,
    title: "Apply the desired state",
    verb: "Apply",
    fields: [DISCONNECT],
    preview: async ({disconnect}) => {
      const results = await calls.apply({dry_run: true, disconnect});
      return {content: outcomes(results), doubtful: results.some((one) => one.error)};
    },
    perform: async ({disconnect, reason}) => {
      const results = await calls.apply({disconnect, reason});
      const failed = results.filter((one) => one.error);
      return failed.length
        ? `${count(failed.length, "operation")} of ${results.length} failed; see the history.`
        : "The system matches the desired state.";
    },
  });

const reread = () =>
  change({
    title: "Reload the configuration",
    verb: "Read",
    preview: async () => ({
      content: make(
        "p",
        {},
        "kmodd reads its configuration files again. If a file is invalid, the previous settings stay in effect.",
      ),
    }),
    perform: ({reason}) => calls.reread({reason}),
  });

/** The view. */
export function open(main) {
  const body = make("div");
  main.append(body);

  async function again() {
    const [rules, drift] = await Promise.all([
      calls.rules(),
      calls.drift().then((rows) => ({rows}), (problem) => ({problem})),
    ]);
    show(body, [rules, drift, drift.problem?.message], () => [
      section(
        "Drift",
        drift.problem ? panel(drift.problem) : drifts(drift.rows),
        make(
          "p",
          {class: "buttons"},
          make(
            "button",
            {type: "button", class: "primary", "data-key": "apply", disabled: !drift.rows?.length, click: apply},
            "Apply …",
          ),
          make("button", {type: "button", "data-key": "reread", click: reread}, "Reload …"),
        ),
      ),
      section(
        count(rules.length, "rule"),
        rules.length ? table(rules) : nothing("No rules."),
      ),
    ]);
  }

  return {title: "Configuration", refresh: again};
}
