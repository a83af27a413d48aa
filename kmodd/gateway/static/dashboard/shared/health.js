// SPDX-License-Identifier: LGPL-2.1-or-later
// Health of kmodd and of the system's modules: findings first, each with a hint.

import {health} from "../calls.js";
import {make, moduleLink, section, show} from "./dom.js";
import {resetFailed} from "./operations.js";

const WORSE = ["failing", "degraded", "ok"];
const KINDS = {ok: "good", degraded: "warn", failing: "bad"};

/** Kinds of events after which health may have changed. */
export const concerns = ["health", "module-", "manager-", "job-", "configuration-", "store-", "daemon"];

function check(one) {
  return make(
    "tr",
    {},
    make("td", {}, make("span", {class: `chip ${KINDS[one.status]}`}, one.status)),
    make("th", {scope: "row", class: "code"}, one.name),
    make(
      "td",
      {},
      one.message,
      " ",
      one.module && moduleLink(one.module),
      one.hint && make("p", {class: "hint"}, "Hint: ", make("code", {}, one.hint)),
      one.name === "failed-operation" &&
        one.module &&
        make(
          "p",
          {},
          make(
            "button",
            {type: "button", class: "small", "data-key": `forget-${one.module}`, click: () => resetFailed(one.module)},
            "Forget …",
          ),
        ),
    ),
  );
}

const checks = (found) =>
  make(
    "div",
    {class: "wide"},
    make(
      "table",
      {class: "checks"},
      make(
        "thead",
        {class: "unseen"},
        make("tr", {}, ...["Status", "Check", "Finding"].map((text) => make("th", {scope: "col"}, text))),
      ),
      make("tbody", {}, ...found.map(check)),
    ),
  );

const kernel = (facts) =>
  make(
    "dl",
    {class: "facts"},
    ...[
      ["Release", make("code", {}, facts.release)],
      ["Lockdown", facts.lockdown],
      [
        "Signatures",
        facts.signature_enforced
          ? "enforced: only signed modules load"
          : "not enforced: unsigned modules load and taint the kernel",
      ],
      ["Secure boot", facts.secure_boot ? "on" : "off"],
      ["Modules", facts.modules_disabled ? "disabled until reboot" : "can be loaded and unloaded"],
      [
        "Taint",
        facts.taint
          ? make(
              "span",
              {},
              make("code", {}, String(facts.taint)),
              ...facts.taint_flags.map((flag) => make("p", {}, flag)),
            )
          : "none",
      ],
    ].flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]),
  );

/** The view. */
export function open(main) {
  const body = make("div");
  main.append(body);

  async function again() {
    const found = await health();
    const bad = found.checks
      .filter((one) => one.status !== "ok" || one.hint)
      .sort((one, other) => WORSE.indexOf(one.status) - WORSE.indexOf(other.status));
    const good = found.checks.filter((one) => !bad.includes(one));
    const words = {
      ok: "No findings.",
      degraded: "Working, but something needs attention.",
      failing: "Something does not work.",
    };
    show(body, found, () => [
      make(
        "p",
        {class: "verdict"},
        make("span", {class: `chip ${KINDS[found.status]}`}, found.status),
        " ",
        words[found.status],
      ),
      bad.length > 0 && section("Findings", checks(bad)),
      section("Kernel", kernel(found)),
      section("Checks without findings", checks(good)),
    ]);
  }

  return {title: "Health", refresh: again};
}
