// SPDX-License-Identifier: LGPL-2.1-or-later
// The parameters a module gets at each load: kmodd's own line in modprobe.d.

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
      make("p", {}, "kmodd’s own file in modprobe.d says:"),
      make("p", {}, make("code", {}, `options ${module} ${spell(wanted)}`)),
      left.length > 0 && make("p", {}, "No longer given: ", make("code", {}, left.join(", "))),
      make("p", {}, "It counts from the next load on. What is loaded now keeps its values."),
    ];
  return left.length || isHidden
    ? make("p", {}, "kmodd’s own line in modprobe.d goes. What is loaded now keeps its values.")
    : make("p", {}, "Nothing: kmodd’s own file in modprobe.d has no line about it, and gets none.");
}

/** Whether there is something to give, or to take away. */
export const hasOptions = (parameters, line) => parameters.length > 0 || line !== undefined;

/** Write the line, or take it away where every field is empty. `line` is the rule that is there, if there is one. */
export function setOptions(module, parameters, line) {
  const own = parse(line?.value || "");
  const isHidden = line !== undefined && line.value === undefined;
  const known = parameters.map((one) => one.name);
  // What its file does not tell of can be given all the same, such as dyndbg.
  const others = Object.keys(own).filter((name) => !known.includes(name));
  return rule(module, {
    title: `Options of ${module} at load`,
    verb: "Write the rule",
    path: "options",
    fields: parameterFields([...parameters, ...others.map((name) => ({name}))], own),
    body: (values) => ({parameters: given(values)}),
    told: (values) => [
      isHidden &&
        make("p", {}, "kmodd’s own line is there, and not for everyone to read: what is written here replaces all of it."),
      told(module, own, given(values), isHidden),
    ],
  });
}
