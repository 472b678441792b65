// What usages in JavaScript are made of, as trial.py is for those in Python.
//
//     usage("streams a reply", async (endpoint) => { ... });   throws where the client does not get what its docs say
//     await runAll();                                           node FILE URL [PART OF A NAME]

const MOST_SECONDS = 90;
const usages = [];

export function usage(name, run) {
  usages.push({ name, run });
}

// The error of that class which the function must throw.
export async function thrown(kind, run) {
  try {
    await run();
  } catch (error) {
    if (error instanceof kind) return error;
    throw error;
  }
  throw new Error(`no ${kind.name}`);
}

function says(error) {
  const told = [];
  for (let at = error; at && told.length < 5; at = at.cause ?? at.lastError) told.push(`${at.name}: ${at.message} ${at.responseBody ?? ""}`);
  return told.join(" | ");
}

function late() {
  return new Promise((_, no) => setTimeout(no, MOST_SECONDS * 1000, new Error(`not done after ${MOST_SECONDS} s`)).unref());
}

export async function runAll() {
  const [root, part = ""] = process.argv.slice(2);
  const endpoint = { root, url: `${root}/v1`, model: "smollm2", key: "any" };
  for (const { name, run } of usages) {
    if (!name.includes(part)) continue;
    const start = performance.now();
    let said = "";
    try {
      await Promise.race([run(endpoint), late()]);
    } catch (error) {
      said = says(error);
      if (part) console.error(error);
    }
    const seconds = Math.round((performance.now() - start) / 100) / 10;
    console.log(`\n${JSON.stringify({ usage: name, works: !said, said, seconds })}`);
  }
  process.exit(0);
}
