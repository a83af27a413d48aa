// SPDX-License-Identifier: LGPL-2.1-or-later
// The parameters a module gets at each load: kmodd's own line in modprobe.d.

import {UNREADABLE} from "../calls.js";
import {make} from "./dom.js";
import {given, parameterFields, rule} from "./operations.js";

// As kmodd spells them: there is no quote in a value.
const ASSIGNMENT = /([^\s=]+)=(?:"([^"]*)"|(\S*))/g;

const parse = (text) =>
  Object.fromEntries([...text.matchAll(ASSIGNMENT)].map(([, name, quoted, plain]) => [name, quoted ?? plain]));

const spell = (values) =>
  Object.entries(values)
    .map(([name, value]) => (/\s/.test(value) ? `${name}="${value}"` : `${name}=${value}`))
    .join(" ");

function told(module, own, wanted, isHidden) {
  const left = Object.keys(own).filter((name) => !(name in wanted));
  if (Object.keys(wanted).length)
    return [
      make("p", {}, "Line in kmodd’s file in modprobe.d:"),
      make("p", {}, make("code", {}, `options ${module} ${spell(wanted)}`)),
      left.length > 0 && make("p", {}, "No longer set: ", make("code", {}, left.join(", "))),
      make("p", {}, "It takes effect at the next load. A loaded module keeps its values."),
    ];
  return left.length || isHidden
    ? make("p", {}, "kmodd’s line in modprobe.d is removed. What is loaded now keeps its values.")
    : make("p", {}, "Nothing to do: kmodd’s file in modprobe.d has no line for it.");
}

/** Whether there is something to set or to remove. */
export const hasOptions = (parameters, line) => parameters.length > 0 || line !== undefined;

/** Write the line, or remove it if every field is empty. `line` is the existing rule, if any. */
export function setOptions(module, parameters, line) {
  const own = parse(line?.value || "");
  const isHidden = line !== undefined && line.value === undefined;
  const known = parameters.map((one) => one.name);
  // Parameters that the file does not declare can be set as well, such as dyndbg.
  const others = Object.keys(own).filter((name) => !known.includes(name));
  return rule(module, {
    title: `Options of ${module} at load`,
    verb: "Write the rule",
    kind: "options",
    fields: parameterFields([...parameters, ...others.map((name) => ({name}))], own),
    body: (values) => ({parameters: given(values)}),
    told: (values) => [
      isHidden &&
        make("p", {}, `kmodd’s existing line is ${UNREADABLE}: the values here replace all of it.`),
      told(module, own, given(values), isHidden),
    ],
  });
}
