// Exchanges the token for a cookie. A token behind # came with the link; it never leaves in a URL.
const answer = document.getElementById("answer");
const field = document.getElementById("token");

async function signIn(token) {
  let response;
  try {
    response = await fetch("/sign-in", { method: "POST", body: token });
  } catch {
    answer.textContent = "The server does not answer.";
    return;
  }
  if (response.ok) location.replace("/");
  else answer.textContent = "That is not the token.";
}

document.getElementById("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(field.value.trim());
});

const linked = new URLSearchParams(location.hash.slice(1)).get("token");
if (linked) {
  history.replaceState(null, "", "/");
  signIn(linked);
}
