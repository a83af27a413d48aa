// SPDX-License-Identifier: LGPL-2.1-or-later
// The HTTP API. A failure is thrown as the problem document that the gateway answered.

import {current, demand} from "./token.js";

export const EXPIRED = "The token was accepted before and is no longer: it has expired or was revoked.";
export const MISSING = "kmodd answers only those who show a token.";

/** A failure, with its problem document (RFC 9457). */
export class Problem extends Error {
  constructor(facts) {
    super(facts.detail);
    this.facts = facts;
    /** The error's name in the table of kmodd's errors, empty for what is wrong as HTTP. */
    this.name = (facts.type || "").startsWith("urn:kmodd:error:") ? facts.type.split(":").pop() : "";
  }
}

const away = (detail) => new Problem({type: "about:blank", title: "the gateway does not answer", status: 0, detail});

/** One request with the token; it waits for another token where this one does not count. The raw answer. */
export async function fetchWith(path, options = {}) {
  for (let tried = ""; ;) {
    // Another request may have asked for a new one meanwhile.
    const token = current() && current() !== tried ? current() : await demand(tried ? EXPIRED : MISSING);
    tried = token;
    let answer;
    try {
      answer = await fetch(path, {
        ...options,
        cache: "no-store",
        headers: {...options.headers, Authorization: `Bearer ${token}`},
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw away("The connection to the gateway failed; nothing is known of what became of the request.");
    }
    if (answer.status !== 401) return answer;
  }
}

async function outcome(answer) {
  if (answer.ok) return answer.json();
  let facts;
  try {
    facts = await answer.json();
  } catch {
    facts = {
      type: "about:blank",
      title: answer.statusText,
      status: answer.status,
      detail: `The gateway answered ${answer.status}.`,
    };
  }
  throw new Problem(facts);
}

/** Ask, with a JSON body where there is one; the answer as an object, or a Problem. */
export async function ask(method, path, body) {
  const options = {method};
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = {"Content-Type": "application/json"};
  }
  return outcome(await fetchWith(path, options));
}

/** Send a file as it is. */
export async function upload(path, file) {
  return outcome(
    await fetchWith(path, {method: "POST", body: file, headers: {"Content-Type": "application/octet-stream"}}),
  );
}

/** The path of a module, or of something of it. */
export const ofModule = (name, rest = "") => `/v1/modules/${encodeURIComponent(name)}${rest}`;
