// SPDX-License-Identifier: LGPL-2.1-or-later
// The connection to kmodd: one channel of cockpit.js to the system bus, as root with administrative access, otherwise as the
// user who is logged in. It is opened again when it ends.

import {ERRORS} from "./errors.js";
import {fromBus} from "./values.js";

export const PATH = "/org/kmodd1";
const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 30000;
const PREFIXES = ["org.kmodd1.Error.", "org.freedesktop.DBus.Error."];
// Of cockpit.js or the bus, when kmodd cannot be reached.
const AWAY = ["ServiceUnknown", "NameHasNoOwner", "NoReply", "Disconnected", "Spawn"];

let client = null;
let pause = FIRST_PAUSE;
let handlers = null;
let last = "";
// Assumed until the bridge says so: it starts kmodd when the channel is opened.
let isRunning = true;

/** A failure, with the same facts as a problem document of the HTTP API. */
export class Problem extends Error {
  constructor(name, message, facts = {}) {
    super(message);
    const [title, hint] = ERRORS[name] || ["request failed", ""];
    this.name = name;
    const fill = hint.includes("{module}") && !facts.module ? "" : hint.replaceAll("{module}", facts.module);
    this.facts = {title, detail: message, hint: fill, ...facts};
  }
}

const unavailable = (detail) => new Problem("Unavailable", detail);

/** An error of cockpit.js as a Problem. */
function problem(error) {
  if (error.problem === "access-denied") return new Problem("AccessDenied", "Cockpit has no access to the system bus");
  if (!error.name) return unavailable(`kmodd cannot be reached: ${error.message}`);
  const prefix = PREFIXES.find((one) => error.name.startsWith(one));
  const name = prefix ? error.name.slice(prefix.length) : "";
  if (AWAY.some((one) => name.startsWith(one))) return unavailable(error.message);
  return new Problem(name || error.name, error.message);
}

function changed(state) {
  if (last === state) return;
  last = state;
  handlers.state(state);
}

function connect() {
  client = cockpit.dbus("org.kmodd1", {bus: "system", superuser: "try"});
  client.addEventListener("owner", (_, owner) => {
    isRunning = Boolean(owner);
    if (isRunning) pause = FIRST_PAUSE;
    changed(isRunning ? "live" : "reconnecting");
  });
  client.addEventListener("close", () => {
    isRunning = false;
    setTimeout(connect, pause);
    pause = Math.min(pause * 2, LONGEST_PAUSE);
    changed("reconnecting");
  });
  client.subscribe({path_namespace: PATH}, (...signal) => handlers.signal(...signal));
}

/** Connect; pass on every signal of kmodd, and whether it is "live" or "reconnecting". */
export function follow(signal, state) {
  handlers = {signal, state};
  connect();
}

/**
 * Call a member of an interface of kmodd; its first result. There is no timeout here: the daemon limits each call, and a load
 * takes as long as its module does.
 */
export async function call(member, type = "a{sv}", args = [{}], path = PATH) {
  const [name, method] = member.split(/\.(?=[^.]*$)/);
  const face = name.includes(".") ? name : `org.kmodd1.${name}`;
  // A call would start what an administrator stopped.
  if (!isRunning) throw unavailable("kmodd is not running");
  try {
    return (await client.call(path, face, method, args, {type, flags: ""}))[0];
  } catch (error) {
    throw problem(error);
  }
}

/** The same of a member that returns a map. */
export const map = async (...args) => fromBus(await call(...args));

/** The same of a member that returns a list of maps. */
export const maps = async (...args) => (await call(...args)).map(fromBus);
