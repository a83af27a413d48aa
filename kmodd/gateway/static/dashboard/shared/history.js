// SPDX-License-Identifier: LGPL-2.1-or-later
// The history from the journal: what was done, by whom, why, and with which result.

import {history} from "../calls.js";
import {make, moduleLink, nothing, show} from "./dom.js";
import {count, duration, time, utc, who} from "./wording.js";

const STEPS = [100, 1000];
const MARKS = {failed: ["✗", "bad", "failed"], "rolled-back": ["↶", "warn", "rolled back"]};

// What the kernel requests for a process: the record names the process, which did nothing itself.
const REQUESTS = {"module.requested": ["·", "dim", "requested"], "module.refused": ["⚠", "warn", "refused"]};

/** Kinds of events after which there may be another record. */
export const concerns = ["history-", "module-", "job-", "configuration-", "store-", "health", "daemon"];

function entry(record) {
  const [mark, kind, words] =
    REQUESTS[record.event] ||
    MARKS[record.result] ||
    (record.error ? MARKS.failed : record.action ? ["✓", "good", "done"] : ["·", "dim", "noted"]);
  const of = REQUESTS[record.event];
  const by = [
    of && record.uid !== undefined ? `for ${who(record)}` : who(record),
    record.exe && !record.on_behalf_of && !of && `with ${record.exe}`,
    of && (record.container ? `container ${record.container}` : record.unit),
    of && record.pid && `pid ${record.pid}`,
    record.duration_usec && duration(record.duration_usec),
  ]
    .filter(Boolean)
    .join(", ");
  const log = [record.kernel_log].flat().filter(Boolean);
  return make(
    "li",
    {},
    make("time", {datetime: utc(record.time), title: utc(record.time)}, time(record.time)),
    make(
      "span",
      {class: `mark ${kind}`},
      make("span", {"aria-hidden": "true"}, mark),
      make("span", {class: "unseen"}, `${words}: `),
    ),
    make(
      "div",
      {},
      make("p", {}, record.message, " ", record.error && make("code", {}, record.error)),
      make("p", {class: "dim"}, record.module && [moduleLink(record.module), by && " · "], by),
      record.reason && make("p", {class: "dim"}, "Reason: ", record.reason),
      of && record.policy && make("p", {class: "dim"}, "Rule: ", make("code", {}, record.policy)),
      log.length > 0 && make("pre", {tabindex: "0", "aria-label": "Kernel log"}, log.join("\n")),
      record.error && record.hint && make("p", {class: "hint"}, "Hint: ", record.hint),
    ),
  );
}

/** Leaves out granted authorizations, which the record of the operation implies. Denials have another kind. */
export const worthTelling = (found) => found.filter((record) => record.event !== "authorization.granted");

/** Records as a list, the newest first. */
export function records(found) {
  return found.length
    ? make("ol", {class: "records"}, ...[...found].reverse().map(entry))
    : nothing("No records.");
}

/** The view; `look` refreshes it. */
export function open(main, _, look) {
  let step = 0;
  let requests = false;
  let all = [];
  let found = [];
  const filter = make("input", {
    type: "search",
    id: "filter",
    autocomplete: "off",
    spellcheck: "false",
    placeholder: "module, user, reason, error …",
    "aria-keyshortcuts": "/",
    input: () => draw(),
  });
  const choices = make(
    "fieldset",
    {class: "choices"},
    make("legend", {class: "unseen"}, "Which records"),
    ...[
      ["all", "All records"],
      ["requests", "Requests of the kernel"],
    ].map(([value, label]) => [
      make("input", {
        type: "radio",
        name: "records",
        id: `records-${value}`,
        value,
        checked: value === "all",
        change: () => {
          requests = value === "requests";
          step = 0;
          all = [];
          look();
        },
      }),
      make("label", {for: `records-${value}`}, label),
    ]),
  );
  const summary = make("p", {class: "summary", role: "status"});
  const list = make("div", {class: "sheet"});
  const more = make(
    "button",
    {
      type: "button",
      hidden: true,
      click: () => {
        step += 1;
        look();
      },
    },
    "Show older records",
  );
  main.append(
    make(
      "div",
      {class: "tools"},
      make("label", {for: "filter", class: "unseen"}, "Filter the history"),
      filter,
      choices,
      summary,
    ),
    list,
    make("p", {class: "buttons"}, more),
  );

  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    const shown = found.filter((record) =>
      [record.message, record.module, who(record), record.reason, record.error, record.event, record.unit]
        .join(" ")
        .toLowerCase()
        .includes(wanted),
    );
    summary.textContent =
      shown.length === found.length
        ? count(found.length, "record")
        : `${shown.length} of ${count(found.length, "record")}`;
    more.hidden = all.length < STEPS[step] || step === STEPS.length - 1;
    show(list, shown, () => [records(shown)]);
  }

  // Each read leaves a record of its authorization, so read only when there may be something new.
  async function again(untold) {
    if (untold && all.length) return;
    const chosen = requests;
    const read = await history({limit: STEPS[step], requests});
    if (chosen !== requests) return;
    all = read;
    found = worthTelling(all);
    draw();
  }

  return {title: "History", refresh: again};
}
