// SPDX-License-Identifier: LGPL-2.1-or-later
// A failure: the sentence, the evidence, the hint.

import {HINTS} from "../calls.js";
import {joined, make, moduleLink} from "./dom.js";

/** The users of a module, as a table. */
export function users(found) {
  const rows = found.map((one) =>
    make(
      "tr",
      {},
      make("td", {}, one.kind),
      make("td", {class: "code"}, one.kind === "module" ? moduleLink(one.name) : one.name || "withheld"),
      make(
        "td",
        {class: "code"},
        one.detail,
        one.file && make("div", {class: "dim"}, "Configured in ", one.line ? `${one.file}:${one.line}` : one.file),
      ),
      make("td", {}, one.command && make("code", {}, one.command)),
    ),
  );
  return make(
    "table",
    {class: "users"},
    make("thead", {}, make("tr", {}, ...["Kind", "What", "Detail", "Ends with"].map((text) => make("th", {scope: "col"}, text)))),
    make("tbody", {}, ...rows),
  );
}

function row(term, ...description) {
  return [make("dt", {}, term), make("dd", {}, ...description)];
}

/** The panel; `problem` is a Problem, or a bug of this page. */
export function panel(problem) {
  const facts = problem.facts;
  // Modules that use it are already listed as holders.
  const others = (facts?.users || []).filter((one) => !facts.holders?.includes(one.name));
  if (!facts)
    return make(
      "div",
      {class: "failure", role: "alert"},
      make("h3", {}, "Error in this page"),
      make("p", {}, String(problem)),
    );
  const evidence = [
    facts.holders?.length && row("Used by", ...joined(facts.holders.map(moduleLink))),
    others.length > 0 && row("Held by", users(others)),
    facts.policy && row("Rule", make("code", {}, facts.policy)),
    facts.argument && row("About", make("code", {}, facts.argument)),
    facts.errno && row("errno", String(facts.errno)),
    facts.kernel_log?.length &&
      row("Kernel log", make("pre", {tabindex: "0", "aria-label": "Kernel log"}, facts.kernel_log.join("\n"))),
  ].filter(Boolean);
  const hint = facts.hint || HINTS[facts.status];
  return make(
    "div",
    {class: "failure", role: "alert"},
    make("h3", {}, facts.title, " ", problem.name && make("code", {}, problem.name)),
    make("p", {}, facts.detail),
    evidence.length > 0 && make("dl", {}, ...evidence),
    hint && make("p", {class: "hint"}, "Hint: ", hint),
  );
}
