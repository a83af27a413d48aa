// SPDX-License-Identifier: LGPL-2.1-or-later
// One module's page: facts, state, users and rules, and what loading or unloading would do.

import * as calls from "../calls.js";
import {grid, make, nothing, section, show} from "./dom.js";
import {panel, users} from "./failure.js";
import {facts} from "./facts.js";
import {records, worthTelling} from "./history.js";
import {load, reload, resetFailed, rule, setParameter, unload} from "./operations.js";
import {hasOptions, setOptions} from "./options.js";
import {steps} from "./plan.js";
import {table as ruleTable} from "./rules.js";
import {routes} from "./surface.js";
import {STATES, taint, time} from "./wording.js";

const RECORDS = 40;
const WITHHELD = {
  users: "some of its users",
  consequences: "some of the consequences",
  "loaded-by": "who loaded it and why",
  "kernel-log": "the kernel log",
};

/** Kinds of events after which the page may have changed. */
export const concerns = ["history-", "module-", "job-", "configuration-", "store-", "health"];

const button = (key, text, act, kind = "", label = null) =>
  make("button", {type: "button", class: kind, "data-key": key, "aria-label": label, click: act}, text);

function why(explained) {
  const by = explained.loaded_by;
  return [
    explained.because && make("p", {}, `${explained.because[0].toUpperCase()}${explained.because.slice(1)}.`),
    by &&
      make(
        "p",
        {class: "dim"},
        [by.client && `with ${by.client}`, by.time && `at ${time(by.time)}`].filter(Boolean).join(", "),
      ),
    explained.policy && make("p", {}, "Rule: ", make("code", {}, explained.policy)),
    explained.withheld?.length > 0 &&
      make(
        "p",
        {class: "dim"},
        `Not shown: ${explained.withheld.map((part) => WITHHELD[part] || part).join(", ")}. ${calls.WITHHELD}`,
      ),
  ];
}

function busy(explained) {
  if (!explained.references && !explained.users.length)
    return [nothing("No module uses it, and nothing else holds a reference.")];
  return [
    make("p", {}, explained.references === 1 ? "1 reference." : `${explained.references} references.`),
    explained.users.length > 0 && users(explained.users),
    !explained.holders.length && !explained.users.length && explained.blockers.map((text) => make("p", {}, text)),
    explained.free?.length > 0 && [
      make("p", {}, "These commands end every use and unload it, in this order:"),
      make("ol", {class: "free"}, ...explained.free.map((command) => make("li", {}, make("code", {}, command)))),
    ],
  ];
}

function parameters(described) {
  const rows = described.parameters || [];
  if (!rows.length) return [nothing("No parameters.")];
  const values = described.live?.parameters || {};
  const row = (one) =>
    make(
      "tr",
      {},
      make("th", {scope: "row", class: "code"}, one.name),
      make(
        "td",
        {class: "code value"},
        one.name in values
          ? values[one.name] || "(empty)"
          : make("span", {class: "dim"}, described.live ? "not shown" : ""),
      ),
      make("td", {class: "code dim type"}, one.type),
      make("td", {class: "said"}, one.description),
      make(
        "td",
        {class: "act"},
        one.writable && described.live
          ? button(
              `set-${one.name}`,
              "Set …",
              () => setParameter(described.name, one, values[one.name]),
              "small",
              `Set … ${one.name}`,
            )
          : described.live && make("span", {class: "dim"}, "read-only"),
      ),
    );
  return [grid("parameters", ["Name", "Value", "Type", "Description", ""], rows.map(row))];
}

function boot(name, rules, parameters) {
  const about = rules.filter((one) => one.module === name);
  const line = about.find((one) => one.kind === "options" && one.ours);
  const has = (kind) => about.some((one) => one.kind === kind && one.ours);
  const autoload = has("autoload");
  const blacklisted = has("blacklist") || has("install");
  return [
    about.length ? ruleTable(about) : nothing("No rules."),
    make(
      "p",
      {class: "buttons"},
      button("autoload", autoload ? "No longer load at boot …" : "Load at boot …", () =>
        rule(name, {
          title: autoload ? `No longer load ${name} at boot` : `Load ${name} at boot`,
          verb: "Write the rule",
          kind: "autoload",
          body: () => ({enabled: !autoload}),
          told: () =>
            make(
              "p",
              {},
              autoload
                ? "kmodd’s line in modules-load.d is removed. Loaded modules stay loaded."
                : "A line is added to kmodd’s file in modules-load.d. Nothing is loaded now.",
            ),
        }),
      ),
      button("blacklist", blacklisted ? "Lift the blacklist …" : "Blacklist …", () =>
        rule(name, {
          title: blacklisted ? `Lift the blacklist of ${name}` : `Blacklist ${name}`,
          verb: "Write the rule",
          kind: "blacklist",
          fields: blacklisted
            ? []
            : [{name: "hard", label: "hard: also prevent loading by name", kind: "flag"}],
          body: (values) => ({blacklisted: !blacklisted, ...(values.hard ? {hard: true} : {})}),
          told: () =>
            make(
              "p",
              {},
              blacklisted
                ? "kmodd’s line in modprobe.d is removed."
                : "A line is added to kmodd’s file in modprobe.d: devices no longer load the module. Loaded modules stay loaded.",
            ),
        }),
      ),
      hasOptions(parameters, line) &&
        button("options", "Options at load …", () => setOptions(name, parameters, line)),
    ),
  ];
}

/** The routes to a module: the daemon resolves all that the kernel may request for them, so only if someone wants to see them. */
function surface(name) {
  const shown = make("div");
  const look = async () => {
    shown.replaceChildren(...(await calls.routes(name).then(routes, (problem) => [panel(problem)])));
  };
  return make(
    "details",
    {"data-key": "routes", toggle: (event) => event.target.open && look()},
    make("summary", {}, "Routes by which the kernel loads it"),
    shown,
  );
}

/** The view of the module of this name. */
export function open(main, name) {
  const head = make("div", {class: "module-head"});
  const body = make("div", {class: "module-body"});
  main.append(head, body);

  let history = null;

  async function again(untold) {
    const settled = (promise) => promise.catch((problem) => ({problem}));
    const [explained, described, config, read] = await Promise.all([
      calls.explain(name),
      settled(calls.describe(name)),
      settled(calls.rules().then((rules) => ({rules}))),
      // Each read of the history leaves a record.
      untold && history
        ? history
        : settled(calls.history({limit: RECORDS, module: name}).then((records) => ({records}))),
    ]);
    history = read.records ? {records: worthTelling(read.records)} : read;
    const isLoaded = ["live", "coming", "going"].includes(explained.state);
    const isBuiltin = explained.state === "builtin"; // its parameters stand on the kernel's command line
    const free = explained.loadable && !explained.because ? ["Nothing prevents loading it."] : [];
    const canLoad = ["available", "disabled"].includes(explained.state);
    const ahead =
      isLoaded || canLoad ? await settled(calls.plan(isLoaded ? "unload" : "load", name).then((found) => ({found}))) : null;
    show(head, [explained.state, described.description, described.live?.taint, explained.removable], () => [
      make(
        "p",
        {class: "state"},
        make("span", {class: `chip ${explained.state}`}, STATES[explained.state] || explained.state),
        described.live?.taint && make("span", {class: "chip warn"}, `taints: ${taint(described.live.taint)}`),
        " ",
        described.description,
        isLoaded && [
          " ",
          make("a", {class: "aside", href: `#/graph/${encodeURIComponent(name)}`}, "Show in the graph"),
        ],
      ),
    ]);
    show(body, [explained, described, config, history, ahead, ahead?.problem?.message], () => [
      make(
        "div",
        {class: "column"},
        section(
          isLoaded ? "Why it is loaded" : isBuiltin ? "Why it is present" : "Why it is not loaded",
          why(explained),
          !isLoaded && !isBuiltin && (explained.blockers.length ? explained.blockers : free).map((text) => make("p", {}, text)),
        ),
        isLoaded && section("Users", busy(explained)),
        ahead &&
          section(
            isLoaded ? "Unloading" : "Loading",
            ahead.problem ? panel(ahead.problem) : steps(ahead.found),
            make(
              "p",
              {class: "buttons"},
              isLoaded
                ? [
                    button("unload", "Unload …", () => unload(name), "primary"),
                    button("reload", "Reload …", () => reload(name)),
                  ]
                : button("load", "Load …", () => load(name), "primary"),
            ),
          ),
        section("Parameters", described.problem ? panel(described.problem) : parameters(described)),
        section(
          "Rules",
          config.problem
            ? panel(config.problem)
            : boot(explained.name, config.rules, isBuiltin ? [] : described.parameters || []),
        ),
        // What is part of the kernel's image is not loaded by anyone.
        !isBuiltin && section("Who can have it loaded", surface(explained.name)),
        section(
          "History",
          history.problem ? panel(history.problem) : records(history.records),
          history.records?.at(-1)?.result === "failed" &&
            make(
              "p",
              {class: "buttons"},
              button("forget", "Reset the failure …", () => resetFailed(name)),
            ),
        ),
      ),
      make(
        "div",
        {class: "column"},
        section("Facts", described.problem ? nothing("Its file cannot be read.") : facts(described)),
      ),
    ]);
  }

  return {title: name, refresh: again};
}
