/* Waiting for events of a client under test, each wait bounded; shared by the scenarios beside this file. */

export const DEADLINE_MS = 20_000;

/** The arguments of the next event called `name`, for which `accept` holds. */
export function nextArguments(emitter, name, accept = () => true) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no '${name}' within ${DEADLINE_MS} ms`)), DEADLINE_MS);
    emitter.on(name, function listen(...args) {
      if (!accept(...args)) return;
      clearTimeout(timer);
      emitter.off(name, listen);
      resolve(args);
    });
  });
}

/** The context of the next event of Centrifugo's SDK, whose events have one argument. */
export const next = async (...wanted) => (await nextArguments(...wanted))[0];
