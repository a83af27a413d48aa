// SPDX-License-Identifier: LGPL-2.1-or-later
// A plan: the steps that would be taken, as the daemon itself would take them.

import {make, moduleLink} from "./dom.js";

const VERBS = {insert: "insert", remove: "remove"};

/** The steps as a list; what will fail says why. */
export function steps(found) {
  if (!found.length) return make("p", {class: "nothing"}, "Nothing to do.");
  return make(
    "ol",
    {class: "plan"},
    ...found.map((step) =>
      make(
        "li",
        {class: step.error ? "fails" : ""},
        make("span", {class: "verb"}, VERBS[step.action] || step.action),
        " ",
        moduleLink(step.module),
        step.parameters && [" ", make("code", {}, step.parameters)],
        " ",
        make("span", {class: "because"}, step.because),
        step.consequences?.length > 0 &&
          make("ul", {class: "consequences"}, ...step.consequences.map((text) => make("li", {}, text))),
        step.error &&
          make(
            "p",
            {class: "why"},
            make("strong", {}, "This will fail: "),
            step.message,
            " ",
            make("code", {}, step.error),
            step.hint && [" ", step.hint],
          ),
      ),
    ),
  );
}

/** Some step will fail. */
export const fails = (found) => found.some((step) => step.error);
