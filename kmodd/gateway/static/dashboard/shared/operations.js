// SPDX-License-Identifier: LGPL-2.1-or-later
// The operations on one module, each through the dialog.

import * as calls from "../calls.js";
import {change} from "./change.js";
import {make} from "./dom.js";
import {fails, steps} from "./plan.js";

/** The checkbox for disconnecting devices and interfaces in use. */
export const DISCONNECT = {name: "disconnect", label: "Disconnect: even if something in use goes with it", kind: "flag"};

const told = (found) => ({content: steps(found), doubtful: fails(found)});

/** A field for each parameter, with the value it has. */
export function parameterFields(parameters, values = {}) {
  return parameters.map((one) => ({
    name: `parameter-${one.name}`,
    label: one.name,
    kind: "text",
    value: values[one.name] || "",
    hint: [one.type, one.description].filter(Boolean).join(": "),
  }));
}

/** The parameters with a value in their field. */
export function given(values) {
  const found = Object.entries(values).filter(([name, value]) => name.startsWith("parameter-") && value !== "");
  return Object.fromEntries(found.map(([name, value]) => [name.slice("parameter-".length), value]));
}

/** Its parameters; none if its file cannot be read, which the plan reports better. */
const parametersOf = (name) => calls.describe(name).catch(() => ({}));

/** Load a module. */
export async function load(name) {
  const described = await parametersOf(name);
  return change({
    title: `Load ${name}`,
    verb: "Load",
    more: parameterFields(described.parameters || []),
    preview: async (values) => told(await calls.plan("load", name, given(values))),
    perform: (values) => calls.load(name, {parameters: given(values), reason: values.reason}),
  });
}

/** Unload a module. */
export function unload(name) {
  const options = (values) => ({dependents: values.dependents, unused_dependencies: values.unused_dependencies, disconnect: values.disconnect});
  return change({
    title: `Unload ${name}`,
    verb: "Unload",
    fields: [
      {name: "dependents", label: "Also the modules that use it", kind: "flag"},
      {name: "unused_dependencies", label: "Also dependencies that are then no longer needed", kind: "flag"},
      DISCONNECT,
    ],
    preview: async (values) => told(await calls.plan("unload", name, {}, options(values))),
    perform: (values) => calls.unload(name, {...options(values), reason: values.reason}),
  });
}

/** Unload a module and load it with other parameters. */
export async function reload(name) {
  const described = await parametersOf(name);
  return change({
    title: `Reload ${name}`,
    verb: "Reload",
    fields: [DISCONNECT],
    more: parameterFields(described.parameters || [], described.live?.parameters),
    preview: async (values) => told(await calls.plan("reload", name, given(values), {disconnect: values.disconnect})),
    perform: (values) =>
      calls.reload(name, {parameters: given(values), disconnect: values.disconnect, reason: values.reason}),
  });
}

/** Write a live parameter. */
export function setParameter(module, parameter, held) {
  return change({
    title: `Set ${parameter.name} of ${module}`,
    verb: "Set",
    fields: [
      {
        name: "value",
        label: `New value (${parameter.type})`,
        kind: "text",
        value: held,
        required: true,
        hint: parameter.description,
      },
    ],
    preview: async (values) => ({
      content: make(
        "p",
        {},
        make("code", {}, `/sys/module/${module}/parameters/${parameter.name}`),
        " changes immediately from ",
        make("code", {}, held || "(empty)"),
        " to ",
        make("code", {}, values.value || "(empty)"),
        ". The kernel may round it; the resulting value is shown.",
      ),
    }),
    perform: async (values) => {
      const held = await calls.setParameter(module, parameter.name, {value: values.value, reason: values.reason});
      return `${parameter.name} of ${module} is ${held} now.`;
    },
  });
}

/** Reset a failed or stuck operation. */
export function resetFailed(name) {
  return change({
    title: `Reset the failure of ${name}`,
    verb: "Forget",
    preview: async () => ({
      content: make("p", {}, `The recorded failure is cleared, and ${name} is unlocked once its call has returned.`),
    }),
    perform: ({reason}) => calls.resetFailed(name, {reason}),
  });
}

/** A change of the rules about a module: kmodd checks it first, without doing it. `told(values)` says what it comes to. */
export function rule(name, {title, verb, kind, body, told: meaning, fields = []}) {
  const write = (values, rest) => calls.writeRule(name, kind, {...body(values), ...rest});
  return change({
    recorded: true,
    title,
    verb,
    fields,
    preview: async (values) => {
      await write(values, {dry_run: true});
      return {content: meaning(values)};
    },
    perform: (values) => write(values, {reason: values.reason}),
  });
}
