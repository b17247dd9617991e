// Print who is seen where. In this folder: npm install, then
// node subscriber.js [ENDPOINT [STREAM [KEY SERVER_KEY]]]
const { readFileSync } = require("fs")
const { Subscriber } = require("zeromq")

const [endpoint = "tcp://127.0.0.1:5556", stream, key, serverKey] = process.argv.slice(2)
const socket = new Subscriber({ receiveHighWaterMark: 2 }) // rather miss messages than see old ones
if (key) { // alice.key_secret server.key, from who runs the publisher
  const read = (file, name) => readFileSync(file, "utf8").match(`${name}-key *= *"(.{40})"`)[1]
  socket.curvePublicKey = read(key, "public")
  socket.curveSecretKey = read(key, "secret")
  socket.curveServerKey = read(serverKey, "public")
}
socket.subscribe(stream ? `pose/${stream}/` : "pose/") // the slash keeps cam1 from cam10
socket.connect(endpoint)

async function main() {
  for await (const [frame] of socket) {
    const poses = JSON.parse(frame.subarray(frame.indexOf(0) + 1)) // topic, NUL, message
    console.log(`${poses.stream} frame ${poses.frame}: ${poses.people.length} people`)
    for (const { id, score, bbox, keypoints } of poses.people) {
      const seen = keypoints.filter((keypoint) => keypoint[2] > 0).length
      console.log(`  id ${id} score ${score} box ${JSON.stringify(bbox)} points ${seen}`)
    }
  }
}
main()
