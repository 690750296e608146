// Questions to the server: an answer that comes in lines of JSON, or one in a piece.

async function post(address, csrf, fields) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
    body: JSON.stringify(fields),
  });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({}));
  throw new Error(told.error || `The server answered ${answer.status}.`);
}

async function ask(address, csrf, fields) {
  return (await post(address, csrf, fields)).json();
}

// Calls `take` with every line, in order; throws what the server says went wrong.
async function stream(address, csrf, fields, take) {
  const reader = (await post(address, csrf, fields)).body
    .pipeThrough(new TextDecoderStream())
    .getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((one) => one)) {
      const event = JSON.parse(line);
      if (event.error) throw new Error(event.error);
      take(event);
    }
  }
}
